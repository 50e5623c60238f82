"""What fails on the GPU or in TensorRT: said in words, with nothing left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import cuda
from fakes.machine import Machine
from tensorrt_tools import opened, some_image

from edge_runtime.bundle import Bundle
from edge_runtime.engines.cuda import GpuError
from edge_runtime.engines.preparing import prepare


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


def test_the_gpu_is_left_when_it_fails_at_once(machine: Machine, tiny_bundle: Bundle) -> None:
    machine.trt.failures["runtime"] = "CUDA initialization failure with error: 35"
    with pytest.raises(GpuError, match="update JetPack or the driver"):
        prepare(tiny_bundle)
    assert machine.cuda.retained == 0
