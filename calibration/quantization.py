"""Post-training quantisation: ranges from frames, then explicit quantise/dequantise (Q/DQ) pairs.

Two forms of one network. TensorRT takes symmetric INT8 with zero points 0 and no quantised biases;
ONNX Runtime on CPUs is fastest with unsigned activations. Both come from the same ranges.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry

from calibration.network import QUANTISED, map_nodes, quantisable_layers
from edge_runtime.errors import InputError

_CHUNK = 4  # frames whose activations are held in memory at once

Quantise = Callable[..., ModelProto]  # (nodes in float, style="tensorrt") -> network
Tick = Callable[[int], None]
Calibrator = Callable[[ModelProto, Sequence[np.ndarray], np.ndarray, Tick], Quantise]
CALIBRATORS: dict[str, Calibrator] = {}
_RANGES: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile-99.999": (CalibrationMethod.Percentile, {"num_bins": 2048, "percentile": 99.999}),
    "percentile-99.99": (CalibrationMethod.Percentile, {"num_bins": 2048, "percentile": 99.99}),
    # 255 levels, as symmetric INT8 has; the search takes time with the square of the bins.
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 255}),
}
DEFAULT_CALIBRATORS = tuple(_RANGES)
# What TensorRT 10.3 to 11 parse and build: only the inputs of quantised layers get pairs.
_TENSORRT: dict[str, Any] = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul", "Gemm", "Add", "Mul", "Relu"],
}
# ONNX Runtime on CPUs is fastest where maps stay in 8 bits from one operator to the next.
_CPU_OPERATORS = tuple(op for op in QDQRegistry if op != "Softmax")


@dataclass(frozen=True)
class Style:
    """A form of quantised network: operators, the nodes meant, and how pairs are placed."""

    operators: tuple[str, ...]
    nodes: Callable[[ModelProto], list[str]]
    activations: QuantType
    options: dict[str, Any]


STYLES = {
    "tensorrt": Style(
        QUANTISED,
        lambda model: [layer.node for layer in quantisable_layers(model)],
        QuantType.QInt8,
        _TENSORRT,
    ),
    "cpu": Style(_CPU_OPERATORS, map_nodes, QuantType.QUInt8, {}),
}


class _Frames(CalibrationDataReader):
    """Network-sized frames as ONNX Runtime's calibrators read them."""

    def __init__(self, frames: Sequence[np.ndarray], adapter: np.ndarray) -> None:
        self._inputs = iter([{"image": f[None], "adapter": adapter} for f in frames])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self._inputs, None)


def register_calibrator(name: str) -> Callable[[Calibrator], Calibrator]:
    """Register a way to quantise, tried or left out by its name."""

    def register(calibrator: Calibrator) -> Calibrator:
        CALIBRATORS[name] = calibrator
        return calibrator

    return register


def calibrate_with(
    name: str,
    model: ModelProto,
    frames: Sequence[np.ndarray],
    adapter: np.ndarray,
    tick: Tick = lambda _: None,
) -> Quantise:
    """Look at frames, and return what quantises the network accordingly.

    Args:
        name: A name of `CALIBRATORS`.
        model: From `network.prepare`.
        frames: uint8 [H, W, 3] of the network's size.
        adapter: float32 [A], the identity.
        tick: Called with the number of frames done since the last call.

    Raises:
        InputError: The calibrator is unknown.
    """
    import calibration.modelopt  # noqa: F401  (registers itself)

    if name not in CALIBRATORS:
        raise InputError(f"calibrator '{name}' is unknown; choose of {', '.join(CALIBRATORS)}")
    return CALIBRATORS[name](model, frames, adapter, tick)


def collect_ranges(
    method: CalibrationMethod,
    options: dict[str, Any],
    operators: Sequence[str],
    model: ModelProto,
    frames: Sequence[np.ndarray],
    adapter: np.ndarray,
    tick: Tick,
) -> TensorsData:
    """Range of every tensor that an operator of `operators` reads or writes."""
    # The histogram calibrators print what they do.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        augmented = str(Path(folder) / "augmented.onnx")
        collector = create_calibrator(
            path, list(operators), augmented, method, extra_options=options
        )
        for start in range(0, len(frames), _CHUNK):
            part = frames[start : start + _CHUNK]
            collector.collect_data(_Frames(part, adapter))
            tick(len(part))
        return collector.compute_data()


def quantise(
    model: ModelProto, ranges: TensorsData, style: Style, in_float: Collection[str] = ()
) -> ModelProto:
    """Insert Q/DQ pairs around the nodes that a style means but for those of `in_float`.

    Args:
        model: From `network.prepare`; it is not changed.
        ranges: From `collect_ranges` for the style's operators.
        style: One of `STYLES`.
        in_float: Nodes that stay in floating point.
    """
    chosen = [node for node in style.nodes(model) if node not in in_float]
    if not chosen:
        raise InputError("no layer is left to quantise")
    copy = ModelProto()
    copy.CopyFrom(model)
    quieted = logging.getLogger()
    level = quieted.level
    quieted.setLevel(logging.ERROR)  # ONNX Runtime warns on the root logger of every bias
    try:
        quantiser = QDQQuantizer(
            copy,
            True,  # per channel
            False,
            QuantType.QInt8,
            style.activations,
            ranges,
            chosen,
            [],
            list(style.operators),
            dict(style.options),
        )
        quantiser.quantize_model()
    finally:
        quieted.setLevel(level)
    quantiser.model.clean_initializers()
    quantiser.model.topological_sort()
    result: ModelProto = quantiser.model.model
    return result


def _by_ranges(method: CalibrationMethod, options: dict[str, Any]) -> Calibrator:
    def calibrate(
        model: ModelProto, frames: Sequence[np.ndarray], adapter: np.ndarray, tick: Tick
    ) -> Quantise:
        def ranges(style: str, tick: Tick) -> TensorsData:
            operators = STYLES[style].operators
            return collect_ranges(method, options, operators, model, frames, adapter, tick)

        found = {"tensorrt": ranges("tensorrt", tick)}

        def make(in_float: Collection[str] = (), style: str = "tensorrt") -> ModelProto:
            if style not in found:  # many more tensors, so only where they are wanted
                found[style] = ranges(style, lambda _: None)
            return quantise(model, found[style], STYLES[style], in_float)

        return make

    return calibrate


for _name, (_method, _options) in _RANGES.items():
    register_calibrator(_name)(_by_ranges(_method, _options))
