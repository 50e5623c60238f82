"""The TensorRT engine's contract, held on a fake GPU for every TensorRT generation."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes import cuda
from fakes.imitation import GENERATIONS
from fakes.machine import Machine
from onnx import TensorProto, helper

from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.engines import open_engine
from edge_runtime.engines.cuda import GpuError, PycudaDevice
from edge_runtime.engines.tensorrt import TensorRTEngine
from edge_runtime.errors import BundleError, InputError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

IMAGE = 48 * 64 * 3  # bytes
ADAPTER = 6 * 4


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A Jetson with the oldest supported TensorRT; nothing may be left on its GPU at the end."""
    machine = Machine(monkeypatch, tmp_path / "cache").install()
    yield machine
    machine.check_clean()


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["zero-copy", "copies"])
def gpu(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A Jetson Orin, which shares its memory, or a GPU with memory of its own."""
    if request.param == "zero-copy":
        return {}
    return {"name": "RTX", "capability": (8, 9), "integrated": False}


def some_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, 48, 64, 3), np.uint8)


def opened(bundle: Bundle, precision: str = "auto") -> TensorRTEngine:
    engine = open_engine(bundle, "tensorrt", precision)
    assert isinstance(engine, TensorRTEngine)
    return engine


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


def test_any_thread_may_call_and_each_finds_its_own_context_again(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    torchs = object()  # what another library made current in this thread
    machine.cuda.stacks.driver.append(torchs)
    engine = opened(tiny_bundle)
    feed = {name: engine.input_buffer(name) for name in engine.inputs}
    results: list[Any] = []

    def work() -> None:
        results.append(engine.infer(feed)["mask"].copy())
        results.append((list(machine.cuda.stacks.pycuda), list(machine.cuda.stacks.driver)))

    for target in (work, work, engine.close):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert len(results) == 4 and results[1] == results[3] == ([], [])
    assert machine.cuda.stacks.driver == [torchs]
    machine.cuda.stacks.driver.clear()


def test_the_context_is_retained_once_and_released_once(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    engine = opened(tiny_bundle)
    engine.infer({name: engine.input_buffer(name) for name in engine.inputs})
    engine.close()
    engine.close()
    gc.collect()
    calls = machine.calls()
    assert calls.count("retain") == calls.count("release") == 1
    assert calls[-1] == "release", "everything is freed before the context is left"


def test_page_locked_memory_outlives_the_engine_while_someone_holds_it(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    engine = opened(tiny_bundle)
    view = engine.input_buffer("image")[0]
    engine.close()
    gc.collect()
    assert "release" not in machine.cuda.calls
    view[:] = 7  # would crash the process if the pages were gone
    del engine
    gc.collect()
    assert list(machine.cuda.live.values()) == ["page-locked memory"]
    freed = threading.Thread(target=lambda held=[view]: held.clear())
    del view
    freed.start()
    freed.join()
    del freed
    machine.check_clean()


def test_a_closed_engine_says_so(machine: Machine, tiny_bundle: Bundle) -> None:
    engine = opened(tiny_bundle)
    feed = {name: engine.input_buffer(name) for name in engine.inputs}
    engine.close()
    with pytest.raises(GpuError, match="is closed; open it again"):
        engine.infer(feed)


@pytest.mark.parametrize("step", ["begin capture", "end capture", "instantiate"])
def test_without_a_graph_the_work_is_queued_and_a_warning_says_why(
    machine: Machine,
    tiny_bundle: Bundle,
    step: str,
    gpu: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine.install(**gpu)
    machine.cuda.capture_codes[step] = 901
    engine = opened(tiny_bundle)
    assert not engine.uses_cuda_graph
    assert "runs without a CUDA graph" in caplog.text and "CUDA error 901" in caplog.text
    image = np.full((1, 48, 64, 3), 255, np.uint8)
    adapter = np.ones(6, np.float32)
    assert engine.infer({"image": image, "adapter": adapter})["statistics"][0] == pytest.approx(1)
    engine.close()


def test_a_network_that_cannot_be_captured_runs_all_the_same(
    machine: Machine, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    machine.trt.failures["execute in capture"] = "operation not permitted when stream is capturing"
    engine = opened(tiny_bundle)
    assert not engine.uses_cuda_graph
    assert "operation not permitted when stream is capturing" in caplog.text
    engine.infer({"image": some_image(), "adapter": np.ones(6, np.float32)})
    engine.close()


def test_a_driver_without_graphs_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_runtime.engines import cuda_graph

    class OldDriver:
        pass

    monkeypatch.setattr(cuda_graph.ctypes, "CDLL", lambda name: OldDriver())
    with pytest.raises(cuda_graph.CaptureError, match="has no CUDA graphs"):
        cuda_graph.load_library.__wrapped__()


def test_a_graph_that_stops_working_is_an_error_not_an_old_result(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    engine = opened(tiny_bundle)
    machine.cuda.capture_codes["launch"] = 700
    with pytest.raises(Exception, match="launch failed with CUDA error 700"):
        engine.infer({"image": some_image(), "adapter": np.ones(6, np.float32)})
    machine.cuda.capture_codes.clear()
    engine.close()


def test_a_failure_on_the_gpu_says_what_and_what_to_do(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    engine = opened(tiny_bundle)
    text = "cuStreamSynchronize failed: out of memory"
    machine.cuda.failures["synchronize"] = cuda.MemoryError, text
    with pytest.raises(GpuError, match=r"Orin: .*out of memory.*--workspace"):
        engine.infer({"image": some_image(), "adapter": np.ones(6, np.float32)})
    machine.cuda.failures.clear()
    engine.close()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("mem_alloc", r"Orin: cuMemAlloc failed: out of memory; out of memory: close other"),
        ("pagelocked_empty", r"out of memory"),
        ("retain", r"Orin: no context: .*out of memory"),
        ("stream", r"Orin: .*out of memory"),
    ],
)
def test_too_little_memory_to_open_leaves_nothing_behind(
    machine: Machine, tiny_bundle: Bundle, call: str, says: str
) -> None:
    machine.cuda.failures[call] = cuda.MemoryError, "cuMemAlloc failed: out of memory"
    with pytest.raises(GpuError, match=says):
        opened(tiny_bundle)


@pytest.mark.parametrize(
    ("step", "logged", "says"),
    [
        ("context", "Cuda Runtime (out of memory)", r"needs 700 MiB and the GPU has 512 MiB free"),
        ("runtime", "CUDA initialization failure with error: 35", r"driver is too old"),
        ("address", "address is misaligned", r"tensor 'image': address is misaligned"),
        ("execute", "Myelin error", r"inference failed: Myelin error"),
        ("builder", "CUDA initialization failure with error: 100", r"CUDA_VISIBLE_DEVICES"),
        ("build", "Could not find any implementation for node conv1", r"could not build a plan"),
    ],
)
def test_what_tensorrt_logs_is_in_the_error(
    machine: Machine, tiny_bundle: Bundle, step: str, logged: str, says: str, generation: str
) -> None:
    machine.install(generation)
    machine.trt.failures[step] = logged
    with pytest.raises(Exception, match=says) as caught:
        opened(tiny_bundle)
    assert logged in str(caught.value)
    assert machine.plans() == []


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


def test_auto_takes_tensorrt_where_it_can_and_says_why(
    machine: Machine, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = open_engine(tiny_bundle, threads=2)
    assert engine.name.startswith("tensorrt")
    assert "engine: tensorrt, because it works here" in caplog.text
    assert "TensorRT does not use the 2 asked for" in caplog.text
    engine.close()


def _no_tensorrt(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "tensorrt", None)


def _stubs_only(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.delattr(machine.trt.module, "Logger")


def _old_tensorrt(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine.trt.module, "__version__", "8.6.2")


def _no_pycuda(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "pycuda.driver", None)
    patch.delattr(sys.modules["pycuda"], "driver")


def _no_gpu(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    machine.cuda.devices = 0


def _no_driver(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    text = "cuInit failed: no CUDA-capable device is detected"
    machine.cuda.failures["init"] = cuda.Error, text


def _old_driver(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    text = "cuInit failed: system has unsupported display driver / cuda driver combination"
    machine.cuda.failures["init"] = cuda.Error, text


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_no_tensorrt, r"tensorrt cannot be imported .*JetPack.*--system-site-packages"),
        (_stubs_only, r"type stubs only; install TensorRT itself"),
        (_old_tensorrt, r"TensorRT 8\.6\.2 is too old; 10\.3"),
        (_no_pycuda, r"pycuda cannot be imported .*fieldsight\[jetson\]"),
        (_no_gpu, r"no GPU answers: CUDA counts 0 devices"),
        (_no_driver, r"no GPU answers: cuInit failed.*--runtime nvidia"),
        (_old_driver, r"driver is too old for this CUDA: update JetPack"),
    ],
)
def test_without_tensorrt_the_choice_is_refused_and_auto_falls_to_the_cpu(
    machine: Machine,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Any,
    says: str,
) -> None:
    spoil(machine, monkeypatch)
    with pytest.raises(InputError, match=says):
        open_engine(tiny_bundle, "tensorrt")
    caplog.set_level(logging.INFO)
    engine = open_engine(tiny_bundle)
    assert engine.name == "onnxruntime-cpu-fp32"
    assert "engine: onnxruntime, because tensorrt is not available" in caplog.text
    assert machine.cuda.retained == 0


@pytest.mark.parametrize("finalizing", [True, False])
def test_what_is_still_open_when_python_ends_is_closed(
    machine: Machine, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, finalizing: bool
) -> None:
    from edge_runtime.engines import tensorrt

    engine = opened(tiny_bundle)

    def start(thread: threading.Thread) -> None:
        assert not finalizing, "it would wait for ever"
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(sys, "is_finalizing", lambda: finalizing)
    tensorrt._close_all()
    gc.collect()
    assert machine.calls()[-1] == "release"
    machine.cuda.stacks.driver.clear()  # of a thread that would have ended
    with pytest.raises(GpuError, match="is closed"):
        engine.infer({})


def test_an_engine_that_is_dropped_leaves_the_gpu_in_order(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    engine = opened(tiny_bundle)
    engine.infer({name: engine.input_buffer(name) for name in engine.inputs})
    del engine
    gc.collect()
    assert machine.calls()[-1] == "release"


def test_pages_that_cannot_be_freed_are_reported_and_hold_nothing_up(
    machine: Machine, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(tiny_bundle)
    machine.cuda.failures["free page-locked memory"] = cuda.LogicError, "context is destroyed"
    engine.close()
    machine.cuda.failures.clear()
    assert "page-locked memory was not freed: Orin: context is destroyed" in caplog.text
    assert machine.calls()[-1] == "release"
    machine.cuda.live.clear()


def test_the_gpu_cannot_be_used_after_it_was_closed(machine: Machine) -> None:
    device = PycudaDevice()
    device.close()
    with pytest.raises(GpuError, match="the engine is closed"), device.active():
        pass
