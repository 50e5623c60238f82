"""NVIDIA ModelOpt as another quantiser, for those who have it (extra `modelopt`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from calibration.network import QUANTISED, quantisable_layers
from calibration.quantization import Calibrator, Quantise, Tick, register_calibrator
from edge_runtime.errors import InputError


def _modelopt() -> Callable[..., None]:
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise InputError(
            f"ModelOpt cannot be imported ({error}); install it in an environment of its own, as "
            "it pins onnx: pip install 'fieldsight[modelopt]'"
        ) from None
    return quantize


def _by_modelopt(method: str) -> Calibrator:
    def calibrate(
        model: ModelProto, frames: Sequence[np.ndarray], adapter: np.ndarray, tick: Tick
    ) -> Quantise:
        run = _modelopt()
        # ModelOpt cuts each array into as many parts as the first axis of its input goes into it.
        data = {"image": np.stack(frames), "adapter": np.tile(adapter, len(frames))}
        layers = {layer.node for layer in quantisable_layers(model)}

        def quantise(in_float: Collection[str] = (), style: str = "tensorrt") -> ModelProto:
            if style != "tensorrt":
                raise InputError("ModelOpt quantises for TensorRT only; calibrate with --no-cpu")
            left = [n.name for n in model.graph.node if n.name not in layers - set(in_float)]
            with tempfile.TemporaryDirectory() as folder:
                source, out = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
                onnx.save(model, source)
                run(
                    str(source),
                    quantize_mode="int8",
                    calibration_data=data,
                    calibration_method=method,
                    calibration_eps=["cpu"],
                    op_types_to_quantize=list(QUANTISED),
                    nodes_to_exclude=left,
                    high_precision_dtype="fp32",
                    output_path=str(out),
                )
                return onnx.load(out)

        tick(len(frames))
        return quantise

    return calibrate


for _method in ("max", "entropy"):
    register_calibrator(f"modelopt-{_method}")(_by_modelopt(_method))
