"""ONNX Runtime on the CPU, reading and writing memory that is allocated once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edge_runtime.bundle import Bundle
from edge_runtime.engines import register_engine
from edge_runtime.errors import BundleError, InputError
from edge_runtime.manifest import TensorSpec

log = logging.getLogger(__name__)
_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
}


class OnnxRuntimeEngine:
    """An ONNX file in an `onnxruntime.InferenceSession` with bound inputs and outputs.

    Args:
        model: Path of the ONNX file; its shapes are static.
        threads: Threads within one inference; ONNX Runtime's default if None.
        precision: Precision of the file, for the engine's name.
        literal: Compute quantise/dequantise pairs as they are written, as a judge of files for
            other runtimes must. Fused to integer kernels, ONNX Runtime is faster, but with FP16
            scales it computes the biases' scales in FP16, where they underflow.
    """

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        precision: str = "fp32",
        literal: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if literal:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if threads is not None:
            if threads < 1:
                raise InputError(f"threads is {threads}, expected at least 1")
            options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise BundleError(f"{model}: ONNX Runtime cannot load it: {error}") from None
        self.name = f"onnxruntime-cpu-{precision}"
        self.inputs: Mapping[str, TensorSpec] = {
            node.name: _spec(node, model) for node in self.session.get_inputs()
        }
        self.outputs: Mapping[str, TensorSpec] = {
            node.name: _spec(node, model) for node in self.session.get_outputs()
        }
        self._binding = self.session.io_binding()
        self._inputs = {name: _buffer(spec) for name, spec in self.inputs.items()}
        self._outputs = {name: _buffer(spec) for name, spec in self.outputs.items()}
        for bind, buffers in (
            (self._binding.bind_input, self._inputs),
            (self._binding.bind_output, self._outputs),
        ):
            for name, array in buffers.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def input_buffer(self, name: str) -> np.ndarray:
        """The memory that the network reads input `name` from."""
        return self._inputs[name]

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run the network; the outputs are overwritten by the next call."""
        for name, buffer in self._inputs.items():
            given = inputs[name]
            if given is not buffer:
                if given.shape != buffer.shape or given.dtype != buffer.dtype:
                    raise InputError(
                        f"input '{name}' is {given.dtype} {given.shape}, "
                        f"expected {buffer.dtype} {buffer.shape}"
                    )
                np.copyto(buffer, given)
        self.session.run_with_iobinding(self._binding)
        return self._outputs

    def close(self) -> None:
        """Free the session; the engine cannot be used afterwards."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        del self._binding, self.session


@register_engine("onnxruntime")
def open_onnxruntime(bundle: Bundle, precision: str, threads: int | None) -> OnnxRuntimeEngine:
    """Open the bundle's file of the asked precision; "auto" takes INT8 where it was kept."""
    int8 = "model.int8-cpu.onnx"
    if precision == "fp16":
        raise InputError("onnxruntime on the CPU has no fp16 here; use fp32, int8 or auto")
    if precision == "int8" and not bundle.has(int8):
        raise InputError(f"{bundle.path} has no {int8}; calibrate it first or use --precision fp32")
    file = int8 if bundle.has(int8) and precision != "fp32" else "model.onnx"
    chosen = "int8" if file == int8 else "fp32"
    log.info("engine: onnxruntime on the CPU runs %s (precision %s asked)", file, precision)
    return OnnxRuntimeEngine(bundle.file(file), threads, chosen)


def _spec(node: ort.NodeArg, model: Path) -> TensorSpec:
    if node.type not in _TYPES or not all(isinstance(size, int) for size in node.shape):
        raise BundleError(
            f"{model}: tensor '{node.name}' is {node.type} {node.shape}; expected a static shape "
            f"and one of {', '.join(_TYPES.values())}; export the bundle again"
        )
    return TensorSpec(name=node.name, dtype=_TYPES[node.type], shape=list(node.shape))


def _buffer(spec: TensorSpec) -> np.ndarray:
    return np.zeros(spec.shape, spec.dtype)
