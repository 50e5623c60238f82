"""What the TensorRT engine computes, and what a frame costs, on a fake GPU of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes.machine import Machine
from onnx import TensorProto, helper
from tensorrt_tools import opened, some_image

from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.engines import open_engine
from edge_runtime.errors import BundleError, InputError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

IMAGE = 48 * 64 * 3  # bytes
ADAPTER = 6 * 4


def test_it_gives_what_onnx_runtime_gives(
    machine: Machine, tiny_bundle: Bundle, generation: str, gpu: dict[str, Any]
) -> None:
    machine.install(generation, **gpu)
    ours, theirs = opened(tiny_bundle), open_engine(tiny_bundle, "onnxruntime", threads=1)
    assert {**ours.inputs} == {**theirs.inputs} and {**ours.outputs} == {**theirs.outputs}
    rng = np.random.default_rng(1)
    for seed in range(4):
        feed = {"image": some_image(seed), "adapter": rng.normal(size=6).astype(np.float32)}
        found, expected = ours.infer(feed), theirs.infer(feed)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
    ours.close()


def test_its_name_says_version_gpu_and_precision(
    machine: Machine, tiny_bundle: Bundle, generation: str, gpu: dict[str, Any]
) -> None:
    machine.install(generation, **gpu)
    engine = opened(tiny_bundle)
    assert engine.name == f"tensorrt-{generation}-sm{'89' if gpu else '87'}-fp32"
    engine.close()


def test_a_frame_costs_one_launch_and_no_copy_where_memory_is_shared(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    engine = opened(tiny_bundle)
    feed = {name: engine.input_buffer(name) for name in engine.inputs}
    engine.infer(feed)
    machine.calls()
    engine.infer(feed)
    assert machine.calls() == ["launch", "synchronize"]
    engine.close()


def test_a_frame_is_copied_in_and_out_where_memory_is_not_shared(
    machine: Machine, tiny_bundle: Bundle, fields: dict[str, Any], network: bytes, tmp_path: Path
) -> None:
    machine.install(integrated=False)
    plain = {**fields, "tensorrt": {"cuda_graph": False}}
    bundle = create_bundle(tmp_path / "plain.bundle", plain, {"model.onnx": network})
    engine = opened(bundle)
    assert not engine.uses_cuda_graph
    feed = {name: engine.input_buffer(name) for name in engine.inputs}
    engine.infer(feed)
    machine.calls()
    engine.infer(feed)
    outputs = [f"download {buffer.nbytes}" for buffer in engine.infer(feed).values()]
    expected = [f"upload {IMAGE}", "execute", *outputs, "synchronize"]
    assert machine.calls() == expected * 2
    engine.close()


def test_the_recorded_graph_holds_the_copies_too(machine: Machine, tiny_bundle: Bundle) -> None:
    machine.install(integrated=False)
    engine = opened(tiny_bundle)
    assert engine.uses_cuda_graph
    feed = {name: engine.input_buffer(name) for name in engine.inputs}
    engine.infer(feed)
    machine.calls()
    feed["image"][:] = 255
    assert engine.infer(feed)["statistics"][0] == pytest.approx(1)
    assert machine.calls() == ["launch", "synchronize"]
    engine.close()


@pytest.mark.parametrize("graph", [True, False])
def test_the_adapter_is_sent_only_when_it_changed(
    machine: Machine,
    fields: dict[str, Any],
    network: bytes,
    tmp_path: Path,
    gpu: dict[str, Any],
    graph: bool,
) -> None:
    machine.install(**gpu)
    options = {**fields, "tensorrt": {"cuda_graph": graph}}
    bundle = create_bundle(tmp_path / "options.bundle", options, {"model.onnx": network})
    engine = opened(bundle)
    adapter = np.array([1, 1, 1, 0, 0, 0], np.float32)
    image = np.zeros((1, 48, 64, 3), np.uint8)

    def sent(values: np.ndarray) -> int:
        machine.calls()
        mask = engine.infer({"image": image, "adapter": values})["mask"]
        assert (mask == values[3:].argmax()).all()  # the GPU worked with these values
        return machine.calls().count(f"upload {ADAPTER}")

    assert sent(adapter) == 1  # the warm-up ran with zeros
    assert sent(adapter) == sent(adapter.copy()) == 0
    adapter[4] = 1  # in place, in an array that was sent before
    assert sent(adapter) == 1
    assert sent(adapter) == 0
    engine.input_buffer("adapter")[:] = [1, 1, 1, 0, 0, 2]  # in the engine's own memory
    assert sent(engine.input_buffer("adapter")) == 1
    engine.close()


def test_a_negative_zero_or_a_nan_is_a_change_like_any_other(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    engine = opened(tiny_bundle)
    adapter = engine.input_buffer("adapter")
    adapter[:] = 0
    engine.infer({name: engine.input_buffer(name) for name in engine.inputs})
    for value, uploads in ((-0.0, 1), (-0.0, 0), (np.nan, 1), (np.nan, 0)):
        machine.calls()
        adapter[0] = value
        engine.infer({name: engine.input_buffer(name) for name in engine.inputs})
        assert machine.calls().count(f"upload {ADAPTER}") == uploads
    engine.close()


def test_nothing_is_allocated_per_frame(
    machine: Machine, tiny_bundle: Bundle, gpu: dict[str, Any]
) -> None:
    machine.install(**gpu)
    engine = opened(tiny_bundle)
    feed = {name: engine.input_buffer(name) for name in engine.inputs}
    outputs = dict(engine.infer(feed))
    live = dict(machine.cuda.live)
    machine.calls()
    for _ in range(50):
        again = engine.infer(feed)
        assert all(again[name] is array for name, array in outputs.items())
    assert machine.cuda.live == live
    assert not {"mem_alloc", "pagelocked_empty"} & set(machine.calls())
    engine.close()


def test_tensors_that_the_runtime_cannot_serve_are_refused(
    machine: Machine, tmp_path: Path, fields: dict[str, Any]
) -> None:
    value = helper.make_tensor_value_info
    for shape, kind, says in (
        (["n", 4], TensorProto.FLOAT, r"'boxes' is FLOAT \[-1, 4\]; expected a static shape"),
        ([1, 4], TensorProto.DOUBLE, r"'boxes' is FP8 \[1, 4\]; expected .* one of UINT8"),
    ):
        graph = helper.make_graph(
            [helper.make_node("Identity", ["image"], ["boxes"])],
            "odd",
            [value("image", kind, shape)],
            [value("boxes", kind, shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        files = {"model.onnx": model.SerializeToString()}
        bundle = create_bundle(tmp_path / "odd.bundle", fields, files, overwrite=True)
        with pytest.raises(BundleError, match=says.replace("boxes", "(boxes|image)")):
            opened(bundle)


def test_a_wrong_input_is_refused(machine: Machine, tiny_bundle: Bundle) -> None:
    engine = opened(tiny_bundle)
    with pytest.raises(InputError, match=r"input 'image' is uint8 \(2, 2\), expected uint8"):
        engine.infer({"image": np.zeros((2, 2), np.uint8), "adapter": np.ones(6, np.float32)})
    engine.close()


def test_perception_runs_on_it_unchanged(
    machine: Machine, tiny_bundle: Bundle, gpu: dict[str, Any]
) -> None:
    machine.install(**gpu)
    perception = Perception(tiny_bundle, "tensorrt")
    other = Perception(tiny_bundle, "onnxruntime", threads=1)
    frame = Frame(some_image(3)[0], 5, "camera")
    for adapter in ([1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]):
        for one in (perception, other):
            one.adapter = np.array(adapter, np.float32)
        assert perception.self_test()["mask_agreement"] == 1  # runs with the identity
        found, expected = perception(frame), other(frame)  # and the adapter is back
        assert found.segmentation is not None and expected.segmentation is not None
        np.testing.assert_array_equal(found.segmentation.mask, expected.segmentation.mask)
        assert found.stamp_ns == 5 and found.frame_id == "camera"
    perception.close()
    del perception, found
