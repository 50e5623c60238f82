"""TensorRT in three generations without a GPU.

Every class has exactly the attributes that the bindings of its generation have (`api.json`, read
off the wheels tensorrt-cu12-bindings 10.3.0, 10.13.0.35 and 11.4.0.106): others raise
AttributeError, those not imitated here NotImplementedError. A plan holds the ONNX file, and
executing it runs that file with ONNX Runtime on the fake GPU's memory.
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from fakes.cuda import FakeCuda

API: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("api.json").read_text())
GENERATIONS = tuple(API)
_PLAN = b"ftrt"
_TYPES = {
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(double)": ("FP8", np.float64),  # a type that the runtime does not serve
}


class _PybindEnum(enum.Enum):
    """Like pybind11's enums: numbers only when asked, so `1 << flag` fails as it does there."""

    def __int__(self) -> int:
        return self.value


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
                setattr(module, name, _PybindEnum(name, content))
        severities = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
        severity = _PybindEnum("Severity", {name: i for i, name in enumerate(severities)})
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


class _Imitation:
    """Has the attributes of its generation and no others."""

    fake: FakeTensorRT
    trt: Any
    names: set[str]

    def __getattr__(self, name: str) -> Any:
        kind = type(self).__name__
        if name in self.names:
            raise NotImplementedError(f"the fake {kind} does not imitate '{name}'")
        raise AttributeError(f"'{kind}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        extensible = isinstance(self, (ILogger, IProgressMonitor))
        if not name.startswith("_") and name not in self.names and not extensible:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        object.__setattr__(self, name, value)


class ILogger(_Imitation):
    Severity: Any

    def __init__(self) -> None:
        self._constructed = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor(_Imitation):
    def __init__(self) -> None:
        self._constructed = True


class IHostMemory(bytes):
    """Bytes of TensorRT's own."""

    fake: FakeTensorRT

    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache(_Imitation):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return self.trt.IHostMemory(self._content)


class ILayer(_Imitation):
    def __init__(self, name: str) -> None:
        self.name = name


class INetworkDefinition(_Imitation):
    def __init__(self) -> None:
        self._model = b""
        self._layers: list[Any] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class IBuilderConfig(_Imitation):
    def __init__(self) -> None:
        self._pools: dict[str, int] = {}
        self._flags: set[str] = set()
        self._timing: Any = None
        self.progress_monitor = None

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool.name] = pool_size

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def can_run_on_DLA(self, layer: Any) -> bool:
        return layer.name not in self.fake.layers_on_gpu

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        if serialized_timing_cache and not serialized_timing_cache.startswith(b"times"):
            return None
        return self.trt.ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._timing = cache
        return "timing" not in self.fake.failures


class Builder(_Imitation):
    def __init__(self, logger: Any) -> None:
        assert logger._constructed
        self.fake.cuda.current("createInferBuilder")
        if self.fake.fails("builder", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    @property
    def num_DLA_cores(self) -> int:
        return self.fake.dla_cores

    def create_network(self, flags: int = 0) -> Any:
        typed = 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert flags == typed, "networks are strongly typed, and no other flag is set"
        return self.trt.INetworkDefinition()

    def create_builder_config(self) -> Any:
        return self.trt.IBuilderConfig()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self.fake.cuda.current("buildSerializedNetwork")
        self.fake.configs.append(config)
        if not self._report(config.progress_monitor) or self.fake.fails("build", self._logger):
            return None
        config._timing._content = b"times" + config._timing._content[:64]
        head = [self.trt.__version__, list(self.fake.cuda.capability)]
        return self.trt.IHostMemory(pack_plan(head, network._model))

    def _report(self, monitor: Any) -> bool:
        """Tell the monitor of two nested phases; False if it cancels."""
        if monitor is None:
            return True
        assert monitor._constructed
        going = True
        monitor.phase_start("Building Engine", None, self.fake.steps)
        monitor.phase_start("Timing", "Building Engine", 2)
        for phase, steps in (("Timing", 2), ("Building Engine", self.fake.steps)):
            for step in range(steps):
                going = going and monitor.step_complete(phase, step)
            monitor.phase_finish(phase)
        return going


class ParserError(_Imitation):
    def __init__(self, code: Any, desc: str, node: str, operator: str) -> None:
        self._values = code, desc, node, operator

    def code(self) -> Any:
        return self._values[0]

    def desc(self) -> str:
        return self._values[1]

    def node_name(self) -> str:
        return self._values[2]

    def node_operator(self) -> str:
        return self._values[3]


class OnnxParser(_Imitation):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        codes = self.trt.ErrorCode
        try:
            nodes = onnx.load_model_from_string(model).graph.node
        except Exception as error:
            code = codes.MODEL_DESERIALIZE_FAILED
            self._errors.append(self.trt.ParserError(code, str(error), "", ""))
            return False
        for node in nodes:
            if node.domain not in ("", "ai.onnx"):
                text = "Plugin not found, are the plugin name, version, and namespace correct?"
                found = codes.INVALID_NODE, text, node.name or node.output[0], node.op_type
                self._errors.append(self.trt.ParserError(*found))
        self._network._model = model
        self._network._layers = [self.trt.ILayer(node.name or node.output[0]) for node in nodes]
        return not self._errors


class Runtime(_Imitation):
    def __init__(self, logger: Any) -> None:
        self.fake.cuda.current("createInferRuntime")
        if self.fake.fails("runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        self.fake.cuda.current("deserializeCudaEngine")
        problem = plan_problem(serialized_engine, self.trt.__version__, self.fake.cuda.capability)
        if problem:
            self._logger.log(self._logger.Severity.ERROR, problem)
            return None
        return self.trt.ICudaEngine(unpack_plan(serialized_engine)[1], self._logger)


class ICudaEngine(_Imitation):
    def __init__(self, model: bytes, logger: Any) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._logger = logger
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._outputs = {node.name: node for node in self._session.get_outputs()}
        self._nodes = {**self._inputs, **self._outputs}
        self._context = self.fake.cuda.current("engine")

    @property
    def num_io_tensors(self) -> int:
        return len(self._nodes)

    @property
    def device_memory_size_v2(self) -> int:
        return 700 << 20

    def create_execution_context(self) -> Any:
        if self.fake.fails("context", self._logger):
            return None
        return self.trt.IExecutionContext(self)

    def get_tensor_name(self, index: int) -> str:
        return list(self._nodes)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self.trt.TensorIOMode
        return mode.INPUT if name in self._inputs else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[_TYPES[self._nodes[name].type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(s if isinstance(s, int) else -1 for s in self._nodes[name].shape)

    def __del__(self) -> None:
        if "_context" in self.__dict__ and self._context not in self.fake.cuda.stacks.pycuda[-1:]:
            self.fake.cuda.faults.append("engine freed while its context was not current")


class IExecutionContext(_Imitation):
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.fake.fails("address", self._engine._logger):
            return False
        self._addresses[name] = memory
        return name in self._engine._nodes

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, engine = self.fake.cuda, self._engine
        cuda.current("executeAsyncV3")
        cuda.record("execute")
        stream = cuda.streams[stream_handle]
        capturing = stream.recording is not None
        if self.fake.fails("execute", engine._logger) or (
            capturing and self.fake.fails("execute in capture", engine._logger)
        ):
            return False
        assert set(self._addresses) == set(engine._nodes), "every tensor needs an address"
        stream.add(self._run)
        return True

    def _memory(self, node: Any) -> np.ndarray:
        dtype = np.dtype(_TYPES[node.type][1])
        size = int(np.prod(node.shape)) * dtype.itemsize
        memory = self.fake.cuda.at(self._addresses[node.name], size)
        return memory.view(dtype).reshape(node.shape)

    def _run(self) -> None:
        engine = self._engine
        feed = {name: self._memory(node).copy() for name, node in engine._inputs.items()}
        names = list(engine._outputs)
        for name, values in zip(names, engine._session.run(names, feed), strict=True):
            spoil = self.fake.spoil.get(name)
            np.copyto(self._memory(engine._outputs[name]), spoil(values) if spoil else values)


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


def pack_plan(head: list[Any], model: bytes) -> bytes:
    """A plan of the fake's own form: what it is for, and the ONNX file."""
    raw = json.dumps(head).encode()
    return _PLAN + len(raw).to_bytes(4, "little") + len(model).to_bytes(4, "little") + raw + model


def unpack_plan(plan: bytes) -> tuple[list[Any], bytes]:
    length = int.from_bytes(plan[4:8], "little")
    return json.loads(plan[12 : 12 + length]), plan[12 + length :]


def plan_problem(plan: bytes, version: str, capability: tuple[int, int]) -> str | None:
    """What TensorRT would log about a plan that it does not take."""
    if not plan.startswith(_PLAN):
        return (
            "Serialization (Serialization assertion stdMagicTag failed. Magic tag does not match)"
        )
    (found_version, found_capability), model = unpack_plan(plan)
    if len(model) != int.from_bytes(plan[8:12], "little"):
        return "Serialization (Serialization assertion size failed. Unexpected end of plan)"
    if found_version != version:
        return f"Version tag does not match. Note: Current Version: {version}"
    if tuple(found_capability) != capability:
        found, here = (".".join(map(str, c)) for c in (found_capability, capability))
        return (
            "The engine plan file is generated on an incompatible device, expecting compute "
            f"{here} got compute {found}, please rebuild."
        )
    return None
