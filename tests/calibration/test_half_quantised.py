"""FP16 around quantise/dequantise pairs: the remainder of an INT8 network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from block_scene import SIZE, draw_block
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from calibration.half import tensor_types, to_half
from calibration.network import prepare
from calibration.rounding import rounded
from edge_runtime.bundle import identity_adapter, open_bundle
from edge_runtime.compile_check import check_file

FRAMES = [cv2.resize(draw_block(300 + i)[0], SIZE[::-1]) for i in range(4)]


class Reader(CalibrationDataReader):
    def __init__(self, adapter: np.ndarray) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter(
            [{"image": frame[None], "adapter": adapter} for frame in FRAMES]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def adapter(trained_bundle: Path) -> np.ndarray:
    return identity_adapter(open_bundle(trained_bundle).manifest)


@pytest.fixture(scope="module")
def quantised(
    trained_bundle: Path, adapter: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> ModelProto:
    """The student with the pairs that TensorRT takes around every convolution but two."""
    folder = tmp_path_factory.mktemp("quantised")
    source, result = folder / "pre.onnx", folder / "int8.onnx"
    network = prepare(trained_bundle / "model.onnx")
    onnx.save(network, source)
    convolutions = [node.name for node in network.graph.node if node.op_type == "Conv"]
    quantize_static(
        str(source),
        str(result),
        Reader(adapter),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=convolutions,
        nodes_to_exclude=convolutions[:2],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    return onnx.load(result)


def masks(model: ModelProto, adapter: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = [{"image": frame[None], "adapter": adapter} for frame in FRAMES]
    return np.stack([session.run(["mask"], feed)[0] for feed in feeds])


def test_pairs_stay_valid_and_feed_half_convolutions(quantised: ModelProto) -> None:
    half = to_half(quantised)
    assert {o.version for o in half.opset_import if o.domain == ""} == {19}
    types = tensor_types(half)
    producer = {name: node for node in half.graph.node for name in node.output}
    pairs = 0
    for node in half.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == TensorProto.FLOAT16, "the scale"
            assert types[node.input[2]] == TensorProto.INT8, "the zero point"
            pairs += 1
        if node.op_type == "DequantizeLinear":
            assert types[node.output[0]] == TensorProto.FLOAT16
    convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
    fed = [
        node
        for node in convolutions
        if all(producer[name].op_type == "DequantizeLinear" for name in node.input[:2])
    ]
    assert len(fed) == len(convolutions) - 2 > 50, "no Cast between a pair and its layer"
    assert pairs > 2 * len(fed)


def test_rounding_the_remainder_changes_little(quantised: ModelProto, adapter: np.ndarray) -> None:
    before, after = masks(quantised, adapter), masks(rounded(to_half(quantised)), adapter)
    assert (before == after).mean() > 0.99
    assert 0.05 < (before == 1).mean() < 0.5, "there is a block to find"


@pytest.mark.parametrize("kept", [0, 3])
def test_tensorrt_builds_it(quantised: ModelProto, kept: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no wheel for this machine")
    convolutions = [node.name for node in quantised.graph.node if node.op_type == "Conv"]
    in_float = convolutions[2 : 2 + kept]
    onnx.save(to_half(quantised, in_float), tmp_path / "model.int8.onnx")
    report = check_file(tmp_path / "model.int8.onnx", "int8")
    assert report.ok and not report.problems, report.problems
    assert report.float_layers == convolutions[: 2 + kept]


def test_a_tiny_scale_does_not_become_zero(quantised: ModelProto) -> None:
    """A channel of dead weights has a scale below FP16's range; dividing by 0 would spread."""
    spoiled = ModelProto()
    spoiled.CopyFrom(quantised)
    scales = {t.name: t for t in spoiled.graph.initializer}
    node = next(
        n
        for n in spoiled.graph.node
        if n.op_type == "QuantizeLinear" and len(scales[n.input[1]].dims) == 1
    )
    values = numpy_helper.to_array(scales[node.input[1]]).copy()
    values[0] = 1e-12
    scales[node.input[1]].CopyFrom(numpy_helper.from_array(values, node.input[1]))
    found = {t.name: t for t in to_half(spoiled).graph.initializer}[node.input[1]]
    assert (numpy_helper.to_array(found) > 0).all()
