"""Post-training quantisation: ranges from frames, then explicit quantise/dequantise (Q/DQ) pairs.

Two forms of one network. TensorRT takes symmetric INT8 with zero points 0 and no quantised biases;
ONNX Runtime on CPUs is fastest with unsigned activations. Both come from the same ranges.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from calibration.network import QUANTISED, quantisable_layers
from edge_runtime.errors import InputError

_CHUNK = 4  # frames whose activations are held in memory at once
# How a tensor's range is read off its values; min-max keeps outliers, the others cut them.
CALIBRATORS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile-99.999": (CalibrationMethod.Percentile, {"num_bins": 2048, "percentile": 99.999}),
    "percentile-99.99": (CalibrationMethod.Percentile, {"num_bins": 2048, "percentile": 99.99}),
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 2048, "num_quantized_bins": 128}),
}
# What TensorRT 10.3 to 11 parse and build: only the inputs of quantised layers get pairs.
_TENSORRT: dict[str, Any] = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul", "Gemm", "Add", "Mul", "Relu"],
}
STYLES: dict[str, tuple[QuantType, dict[str, Any]]] = {
    "tensorrt": (QuantType.QInt8, _TENSORRT),
    "cpu": (QuantType.QUInt8, {}),
}


class _Frames(CalibrationDataReader):
    """Network-sized frames as ONNX Runtime's calibrators read them."""

    def __init__(self, frames: Sequence[np.ndarray], adapter: np.ndarray) -> None:
        self._inputs = iter([{"image": f[None], "adapter": adapter} for f in frames])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self._inputs, None)


def collect_ranges(
    model: ModelProto,
    frames: Sequence[np.ndarray],
    adapter: np.ndarray,
    calibrator: str,
    tick: Callable[[int], None] = lambda _: None,
) -> TensorsData:
    """Range of every tensor that a quantised layer reads or writes.

    Args:
        model: From `network.prepare`.
        frames: uint8 [H, W, 3] of the network's size.
        adapter: float32 [A], the identity.
        calibrator: A name of `CALIBRATORS`.
        tick: Called with the number of frames done since the last call.

    Raises:
        InputError: An activation is not finite, or the calibrator is unknown.
    """
    if calibrator not in CALIBRATORS:
        raise InputError(f"calibrator '{calibrator}' is unknown; choose {', '.join(CALIBRATORS)}")
    method, options = CALIBRATORS[calibrator]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        collector = create_calibrator(
            path,
            list(QUANTISED),
            str(Path(folder) / "augmented.onnx"),
            method,
            extra_options=options,
        )
        for start in range(0, len(frames), _CHUNK):
            part = frames[start : start + _CHUNK]
            collector.collect_data(_Frames(part, adapter))
            tick(len(part))
        ranges = collector.compute_data()
    _require_finite(ranges)
    return ranges


def _require_finite(ranges: TensorsData) -> None:
    wrong = [
        name
        for name, data in ranges.items()
        if not np.isfinite(np.asarray(data.range_value, np.float64)).all()
    ]
    if wrong:
        raise InputError(
            f"{len(wrong)} activations are not finite in FP32, first '{wrong[0]}'; nothing can be "
            "calibrated on them. Check the weights and the frames, then export again"
        )


def quantise(
    model: ModelProto, ranges: TensorsData, in_float: Collection[str] = (), style: str = "tensorrt"
) -> ModelProto:
    """Insert Q/DQ pairs around every quantisable layer but those of `in_float`.

    Args:
        model: From `network.prepare`; it is not changed.
        ranges: From `collect_ranges`.
        in_float: Nodes that stay in floating point.
        style: "tensorrt" or "cpu"; see `STYLES`.
    """
    chosen = [layer.node for layer in quantisable_layers(model) if layer.node not in in_float]
    if not chosen:
        raise InputError("no layer is left to quantise")
    activations, options = STYLES[style]
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
            activations,
            ranges,
            chosen,
            [],
            list(QUANTISED),
            dict(options),
        )
        quantiser.quantize_model()
    finally:
        quieted.setLevel(level)
    result: ModelProto = quantiser.model.model
    return result
