"""FP16: types, precision where it counts, and overflow."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from block_scene import SIZE, draw_block
from broken_networks import make_overflow, set_nan
from onnx import ModelProto, TensorProto, numpy_helper

from calibration.half import tensor_types, to_half
from calibration.rounding import not_finite, overflowing, peaks, rounded
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.errors import InputError, RefusedError

Outputs = dict[str, np.ndarray]


def frames(count: int = 4) -> list[np.ndarray]:
    """Blocks that training did not see, at network size."""
    return [cv2.resize(draw_block(100 + i)[0], SIZE[::-1]) for i in range(count)]


def run(model: ModelProto, image: np.ndarray, adapter: np.ndarray) -> Outputs:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    values = session.run(names, {"image": image[None], "adapter": adapter})
    return dict(zip(names, values, strict=True))


@pytest.fixture
def network(bundle: Bundle) -> ModelProto:
    return onnx.load(bundle.file("model.onnx"))


@pytest.fixture
def adapter(bundle: Bundle) -> np.ndarray:
    return identity_adapter(bundle.manifest)


def test_interface_stays_and_convolutions_are_half(network: ModelProto) -> None:
    before = network.SerializeToString()
    half = to_half(network)
    assert network.SerializeToString() == before, "the source was changed"
    for kind in ("input", "output"):
        old, new = getattr(network.graph, kind), getattr(half.graph, kind)
        assert [v.SerializeToString() for v in old] == [v.SerializeToString() for v in new]
    types = tensor_types(half)
    convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 50
    for node in convolutions:
        assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}
    for node in half.graph.node:
        if node.op_type in ("Add", "Mul", "Sub", "Div", "Concat"):
            assert len({types[name] for name in (*node.input, *node.output)}) == 1, node.name


def test_what_needs_fp32_never_passes_through_fp16(network: ModelProto) -> None:
    half = to_half(network)
    types = tensor_types(half)
    producer = {name: node for node in half.graph.node for name in node.output}
    operators = {"Sub", "Div", "Softplus", "Sigmoid", "ReduceMean", "Concat"}
    for node in half.graph.node:
        floats = [n for n in node.input if types.get(n) == TensorProto.FLOAT]
        for name in floats if node.op_type in operators else []:
            source = producer.get(name)
            if source is not None and source.op_type == "Cast":
                upstream = producer.get(source.input[0])
                assert upstream is None or upstream.op_type != "Cast", f"{node.name}: round trip"
    boxes = producer["boxes"]
    assert {types[name] for name in boxes.input} == {TensorProto.FLOAT, TensorProto.INT64}
    assert types[producer["scores"].input[0]] == TensorProto.FLOAT


def test_rounded_twin_agrees_with_fp32_to_half_precision(
    network: ModelProto, adapter: np.ndarray
) -> None:
    twin = rounded(to_half(network))
    rng = np.random.default_rng(0)
    moved = adapter + rng.uniform(-0.1, 0.1, len(adapter)).astype(np.float32)
    differs = False
    for image in frames():
        for given in (adapter, moved):
            expected, found = run(network, image, given), run(twin, image, given)
            assert (expected["mask"] == found["mask"]).mean() > 0.995
            spread = np.abs(expected["statistics"]) + 0.05
            # Means lie where scales do, variances where shifts do; a mean may well be near zero.
            spread[adapter == 1] += np.sqrt(expected["statistics"][adapter == 0])
            assert (np.abs(expected["statistics"] - found["statistics"]) / spread).max() < 0.02
            best = np.abs(expected["boxes"][0] - found["boxes"]).max(axis=1)
            assert best.min() < 0.1, "pixels"
            assert abs(expected["scores"][0] - found["scores"][best.argmin()]) < 5e-3
            differs |= not np.array_equal(expected["statistics"], found["statistics"])
    assert differs, "nothing was rounded"


def test_the_file_itself_runs_and_the_twin_stands_for_it(
    network: ModelProto, adapter: np.ndarray
) -> None:
    half = to_half(network)
    for image in frames(2):
        file, twin = run(half, image, adapter), run(rounded(half), image, adapter)
        assert (file["mask"] == twin["mask"]).mean() > 0.995
        np.testing.assert_allclose(file["statistics"], twin["statistics"], rtol=0.05, atol=0.02)


def test_overflow_is_found_on_real_frames_and_kept_in_fp32(
    network: ModelProto, adapter: np.ndarray
) -> None:
    reference = run(network, frames(1)[0], adapter)
    pair = make_overflow(network, 1e5)
    assert not_finite(rounded(to_half(network)), frames(), adapter) is not None
    found = overflowing(network, peaks(network, frames(), adapter))
    assert set(pair) <= set(found)
    assert len(found) < 10, "only the layers around it"
    mended = rounded(to_half(network, found))
    assert not_finite(mended, frames(), adapter) is None
    mask = run(mended, frames(1)[0], adapter)["mask"]
    assert (mask == reference["mask"]).mean() > 0.995


def test_the_margin_keeps_layers_that_come_near(network: ModelProto, adapter: np.ndarray) -> None:
    values = peaks(network, frames(), adapter)
    assert overflowing(network, values) == []
    name = max(values, key=values.__getitem__)
    assert overflowing(network, {**values, name: 16000.0}) == []
    assert overflowing(network, {**values, name: 17000.0}) != []


def test_constants_beyond_fp16_keep_their_node_in_fp32(network: ModelProto) -> None:
    convolution = next(node for node in network.graph.node if node.op_type == "Conv")
    for tensor in network.graph.initializer:
        if tensor.name == convolution.input[1]:
            values = numpy_helper.to_array(tensor).copy()
            values.flat[0] = 1e6
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert convolution.name in overflowing(network, {})
    kept = {t.name: t for t in to_half(network).graph.initializer}[convolution.input[1]]
    assert numpy_helper.to_array(kept).flat[0] == np.float32(1e6)


def test_wrong_networks_are_named(network: ModelProto) -> None:
    with pytest.raises(InputError, match="FP16 tensors already"):
        to_half(to_half(network))
    with pytest.raises(InputError, match="no node 'nothing'"):
        to_half(network, ["nothing"])
    network.graph.node[5].input[0] = "nowhere"  # read, but made by no node
    with pytest.raises(InputError, match="FP16"):
        to_half(network)


def test_values_that_are_not_finite_stop_the_search(
    network: ModelProto, adapter: np.ndarray
) -> None:
    set_nan(network)
    with pytest.raises(RefusedError, match="not finite"):
        peaks(network, frames(1), adapter)
