"""TensorRT's classes that read a network and build a plan, without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from fakes.imitation import Imitation
from fakes.plans import pack_plan

if TYPE_CHECKING:
    from fakes.tensorrt import FakeTensorRT


class ILogger(Imitation):
    Severity: Any
    _extensible = True

    def __init__(self) -> None:
        self._constructed = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor(Imitation):
    _extensible = True

    def __init__(self) -> None:
        self._constructed = True


class IHostMemory(bytes):
    """Bytes of TensorRT's own."""

    fake: FakeTensorRT

    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache(Imitation):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return self.trt.IHostMemory(self._content)


class ILayer(Imitation):
    def __init__(self, name: str) -> None:
        self.name = name


class INetworkDefinition(Imitation):
    def __init__(self) -> None:
        self._model = b""
        self._layers: list[Any] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class IBuilderConfig(Imitation):
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


class Builder(Imitation):
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


class ParserError(Imitation):
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


class OnnxParser(Imitation):
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
