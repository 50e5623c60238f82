from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from calibration.network import (
    ahead_of_adapter,
    all_macs,
    expose,
    open_session,
    prepare,
    quantisable_layers,
    require_finite,
)
from calibration.quantization import DEFAULT_CALIBRATORS, calibrate_with
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.errors import InputError


@pytest.fixture
def prepared(bundle: Bundle) -> ModelProto:
    return prepare(bundle.file("model.onnx"))


@pytest.fixture
def frames(bundle: Bundle) -> list[np.ndarray]:
    with np.load(bundle.file("canary.npz")) as canary:
        return list(canary["images"][:8])


def run(model: ModelProto, frame: np.ndarray, adapter: np.ndarray) -> dict[str, np.ndarray]:
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    inputs = {"image": frame[None], "adapter": adapter}
    return dict(zip(names, session.run(names, inputs), strict=True))


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_layers_are_named_after_weights_and_leave_adapter_and_boxes_out(
    prepared: ModelProto,
) -> None:
    layers = quantisable_layers(prepared)
    names = [layer.name for layer in layers]
    assert "trunk.body.conv_stem" in names and "heads.segmentation.classify" in names
    assert len({layer.node for layer in layers}) == len(layers)
    convolutions = [n for n in prepared.graph.node if n.op_type == "Conv"]
    assert sum(layer.operator == "Conv" for layer in layers) == len(convolutions)
    assert sum(layer.macs for layer in layers) == all_macs(prepared)
    touched = {"adapter"}
    for node in prepared.graph.node:
        if touched.intersection(node.input) and "image" not in node.input:
            known = {layer.node for layer in layers if layer.operator == "Add"}
            direct = [i for i in node.input if i in touched]
            if node.op_type in ("Split", "Reshape", "Unsqueeze", "Slice"):
                touched.update(node.output)
            assert not (direct and node.name in known), "an adapter's shift would be quantised"


@pytest.mark.parametrize("points", [1, 2])
def test_what_lies_ahead_of_the_adapter_is_known(
    bundle: Bundle, prepared: ModelProto, points: int
) -> None:
    """The same as by running it: what is changed from a point on leaves the layers ahead alone."""
    ahead = ahead_of_adapter(prepared, points)
    layers = [layer for layer in quantisable_layers(prepared) if layer.operator == "Conv"]
    outputs = {n.name: n.output[0] for n in prepared.graph.node}
    session = open_session(expose(prepared, [outputs[layer.node] for layer in layers]))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    adapters = np.ones((2, bundle.manifest.adapter_size), np.float32)
    first = bundle.manifest.student.adapter[: points - 1]
    adapters[1, 2 * sum(point.channels for point in first) :] = 1.5
    found = [session.run(None, {"image": image, "adapter": adapter}) for adapter in adapters]
    same = {
        layer.node
        for layer, one, other in zip(layers, *found, strict=True)
        if np.array_equal(one, other) and layer.name.startswith("trunk.")  # necks read each point
    }
    assert same == ahead.intersection(layer.node for layer in layers) and same


def test_a_network_without_adapter_has_nothing_ahead_of_it(prepared: ModelProto) -> None:
    model = ModelProto()
    model.CopyFrom(prepared)
    for node in model.graph.node:
        node.input[:] = ["image" if name == "adapter" else name for name in node.input]
    assert ahead_of_adapter(model) == frozenset()


def test_the_form_that_tensorrt_takes(
    bundle: Bundle, prepared: ModelProto, frames: list[np.ndarray]
) -> None:
    adapter = identity_adapter(bundle.manifest)
    model = calibrate_with("minmax", prepared, frames, adapter)()
    onnx.checker.check_model(model)
    values, kinds = constants(model), {t.name: t.data_type for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any(), "TensorRT takes no zero point but 0"
        assert kinds.get(node.input[0]) != onnx.TensorProto.INT32, "a bias was quantised"
    quantised = {n.output[0] for n in pairs if n.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert quantised.issuperset(node.input[:2]), f"{node.name} is not fed by pairs"
    fed = {"adapter"}
    for node in model.graph.node:
        if fed.intersection(node.input):
            assert node.op_type != "QuantizeLinear" or "image" in fed
            if all(i in fed or i in values or not i for i in node.input):
                fed.update(node.output)


@pytest.mark.parametrize(
    "calibrator", [*DEFAULT_CALIBRATORS[:-1], pytest.param("entropy", marks=pytest.mark.slow)]
)
def test_the_quantised_network_does_what_the_network_does(
    bundle: Bundle, prepared: ModelProto, frames: list[np.ndarray], calibrator: str
) -> None:
    adapter = identity_adapter(bundle.manifest)
    expected = run(prepared, frames[0], adapter)
    make = calibrate_with(calibrator, prepared, frames, adapter)
    for style in ("tensorrt", "cpu"):
        found = run(make(style=style), frames[0], adapter)
        assert (found["mask"] == expected["mask"]).mean() > 0.9, style
        assert np.abs(found["boxes"][0] - expected["boxes"][0]).max() < 8, style


def test_the_adapter_works_in_int8_as_in_float(
    bundle: Bundle, prepared: ModelProto, frames: list[np.ndarray]
) -> None:
    adapter = identity_adapter(bundle.manifest)
    model = calibrate_with("minmax", prepared, frames, adapter)()
    before = run(model, frames[0], adapter)["statistics"]
    first = bundle.manifest.student.adapter[0].channels
    brighter = adapter.copy()
    brighter[:first] *= 1.5
    after = run(model, frames[0], brighter)["statistics"]
    assert after[: 2 * first] == pytest.approx(before[: 2 * first]), "taken before the adapter"
    assert not np.allclose(after[2 * first :], before[2 * first :], rtol=0.05)


def test_layers_asked_to_stay_in_float_do(
    bundle: Bundle, prepared: ModelProto, frames: list[np.ndarray]
) -> None:
    make = calibrate_with("minmax", prepared, frames, identity_adapter(bundle.manifest))
    layers = quantisable_layers(prepared)
    kept = {layer.node for layer in layers if "heads" in layer.name}
    model = make(kept)
    dequantised = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert (node.input[1] in dequantised) == (node.name not in kept)
    with pytest.raises(InputError, match="no layer is left to quantise"):
        make({layer.node for layer in layers})


def spoil(model: ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> ModelProto:
    """Change the weights of the stem's convolution."""
    copy = ModelProto()
    copy.CopyFrom(model)
    weights = next(t for t in copy.graph.initializer if t.name.endswith("conv_stem.weight"))
    array = change(numpy_helper.to_array(weights).copy())
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    return copy


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused_with_the_layer(
    bundle: Bundle, prepared: ModelProto, frames: list[np.ndarray], value: float
) -> None:
    broken = spoil(prepared, lambda array: np.full_like(array, value))
    with pytest.raises(InputError, match=r"'trunk.body.conv_stem' gives.*not finite in FP32"):
        require_finite(broken, frames, identity_adapter(bundle.manifest))
    require_finite(prepared, frames, identity_adapter(bundle.manifest))


def test_an_unknown_calibrator_names_the_known_ones(prepared: ModelProto) -> None:
    with pytest.raises(InputError, match=r"'magic' is unknown.*minmax.*modelopt-entropy"):
        calibrate_with("magic", prepared, [], np.empty(0, np.float32))


def test_modelopt_that_is_absent_says_how_to_get_it(prepared: ModelProto) -> None:
    try:
        import modelopt.onnx  # noqa: F401

        pytest.skip("ModelOpt is installed here")
    except ImportError:
        pass
    with pytest.raises(InputError, match=r"pip install 'fieldsight\[modelopt\]'"):
        calibrate_with("modelopt-max", prepared, [], np.empty(0, np.float32))


def test_a_file_that_is_no_network_is_refused(bundle: Bundle) -> None:
    path = bundle.file("model.onnx")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model\.onnx: cannot be prepared"):
        prepare(path)


def test_exposed_tensors_are_the_only_outputs(prepared: ModelProto) -> None:
    name = next(n.output[0] for n in prepared.graph.node if n.op_type == "Conv")
    assert [output.name for output in expose(prepared, [name]).graph.output] == [name]


def test_quantise_leaves_its_argument_as_it_is(
    bundle: Bundle, prepared: ModelProto, frames: list[np.ndarray]
) -> None:
    before = prepared.SerializeToString()
    make = calibrate_with("minmax", prepared, frames, identity_adapter(bundle.manifest))
    assert make() != prepared
    assert prepared.SerializeToString() == before
