"""TensorRT's classes that load a plan and run it: ONNX Runtime on the fake GPU's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from fakes.imitation import Imitation
from fakes.plans import plan_problem, unpack_plan

_TYPES = {
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(double)": ("FP8", np.float64),  # a type that the runtime does not serve
}


class Runtime(Imitation):
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


class ICudaEngine(Imitation):
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


class IExecutionContext(Imitation):
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
