"""What the TensorRT engine holds on the GPU, who may use it, and when it lets go."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import pytest
from fakes import cuda
from fakes.machine import Machine
from tensorrt_tools import opened

from edge_runtime.bundle import Bundle
from edge_runtime.engines.cuda import GpuError, PycudaDevice


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
