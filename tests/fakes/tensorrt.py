"""TensorRT in three generations without a GPU.

Every class has exactly the attributes that the bindings of its generation have. A plan holds the
ONNX file, and executing it runs that file with ONNX Runtime on the fake GPU's memory.
"""

from __future__ import annotations

import types
from typing import Any

from fakes.cuda import FakeCuda
from fakes.imitation import API, PybindEnum
from fakes.tensorrt_building import (
    Builder,
    IBuilderConfig,
    IHostMemory,
    ILayer,
    ILogger,
    INetworkDefinition,
    IProgressMonitor,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from fakes.tensorrt_running import ICudaEngine, IExecutionContext, Runtime

_IMITATIONS: tuple[type, ...] = (
    ILogger,
    IProgressMonitor,
    IHostMemory,
    ITimingCache,
    ILayer,
    INetworkDefinition,
    IBuilderConfig,
    Builder,
    ParserError,
    OnnxParser,
    Runtime,
    ICudaEngine,
    IExecutionContext,
)


class FakeTensorRT:
    """One installed TensorRT.

    Attributes:
        module: Takes the place of `tensorrt`.
        failures: What goes wrong: "builder", "build", "runtime", "context", "address", "execute",
            "execute in capture" or "timing", with the text that TensorRT logs.
        layers_on_gpu: Names of layers that DLA does not take.
        dla_cores: How many there are.
        spoil: Changes the outputs of every run, by name.
        steps: Of each phase of a build.
        configs: Every builder configuration that a network was built with.
    """

    def __init__(self, generation: str, cuda: FakeCuda) -> None:
        self.api, self.cuda = API[generation], cuda
        self.failures: dict[str, str] = {}
        self.layers_on_gpu: set[str] = set()
        self.dla_cores = 0
        self.spoil: dict[str, Any] = {}
        self.steps = 3
        self.configs: list[Any] = []
        self.module = self._module()

    def _module(self) -> Any:
        module: Any = types.ModuleType("tensorrt")
        module.__version__ = self.api["__version__"]
        for name, content in self.api.items():
            if isinstance(content, dict):
                setattr(module, name, PybindEnum(name, content))
        severities = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
        severity = PybindEnum("Severity", {name: i for i, name in enumerate(severities)})
        for imitation in _IMITATIONS:
            names = set(self.api[imitation.__name__])
            fields = {"fake": self, "trt": module, "names": names}
            setattr(module, imitation.__name__, type(imitation.__name__, (imitation,), fields))
        module.ILogger.Severity = severity
        module.Logger = type("Logger", (module.ILogger,), {})
        return module

    def fails(self, what: str, logger: Any) -> bool:
        """Whether this goes wrong; if so TensorRT logs it."""
        if what not in self.failures:
            return False
        logger.log(logger.Severity.ERROR, self.failures[what])
        return True
