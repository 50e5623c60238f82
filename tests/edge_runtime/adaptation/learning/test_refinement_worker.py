"""A worker that dies, stalls or talks nonsense is replaced, and nobody waits for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.adaptation.refinement.supervisor import Patience, Supervisor
from edge_runtime.adaptation.refinement.worker import Job, must_wait, rests
from edge_runtime.bundle import Bundle
from edge_runtime.doctor.machine import Machine

SHAPE = (4, 6)
BASE = np.array([0.5, 0, 0, 0], np.float32)


def image(value: int) -> np.ndarray:
    return np.full((*SHAPE, 3), value, np.uint8)


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def learn(worker: Supervisor, value: int) -> np.ndarray:
    """Offer an image as a stream would, again and again, until it was learnt from."""
    found: list[np.ndarray] = []

    def learnt() -> bool:
        if worker.ready:
            worker.offer(image(value), BASE)
        found.extend(a for a in [worker.take()] if a is not None and a[1] == value)
        return bool(found)

    wait_for(learnt)
    return found[-1]


@pytest.fixture
def worker(tiny_bundle: Bundle) -> Iterator[Supervisor]:
    job = Job(str(tiny_bundle.path), "worker_jobs:Count", SHAPE, duty=1.0, cool=-1e9)
    patience = Patience(start=60, silence=1.0, pause=0.05, longest=0.2)
    supervisor = Supervisor(job, np.zeros(4, np.float32), patience)
    yield supervisor
    supervisor.close()
    assert supervisor.health.state == "closed" and supervisor.health.pid is None


def test_frames_go_there_and_adapters_come_back(worker: Supervisor) -> None:
    first, second = learn(worker, 9), learn(worker, 7)
    assert first.tolist()[1:] == [9, 0.5, first[0]] and second.tolist()[1:] == [7, 0.5, second[0]]
    assert second[0] > first[0] >= 1
    assert worker.health.learnt >= 2 and worker.health.failures == 0


def test_the_newest_frame_wins(worker: Supervisor) -> None:
    for value in (1, 2, 3):  # the process has not even started
        worker.offer(image(value), BASE)
    found = []
    wait_for(lambda: found.append(worker.take()) or found[-1] is not None)
    assert found[-1].tolist() == [1, 3, 0.5, 1]


def test_it_runs_at_the_lowest_priority(worker: Supervisor) -> None:
    learn(worker, 1)
    pid = worker.health.pid
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_worker_is_replaced_and_loses_nothing(
    worker: Supervisor, number: signal.Signals
) -> None:
    first = [learn(worker, value) for value in (1, 2, 3)][-1]
    pid = worker.health.pid
    assert pid is not None
    os.kill(pid, number)
    worker.offer(image(5), BASE)  # returns, whatever the worker does
    wait_for(lambda: worker.health.failures == 1)
    again = learn(worker, 6)
    assert again[0] > first[0] >= 3, "it should go on from what was learnt last"
    assert worker.health.pid != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    wanted = "exit code -9" if number == signal.SIGKILL else "no sign of life"
    assert wanted in (worker.health.reason or "")


def test_a_stream_is_not_held_up_by_a_stopped_worker(worker: Supervisor) -> None:
    """Every call returns while the process stands still, so the loop ends before it is replaced."""
    learn(worker, 1)
    assert worker.health.pid is not None
    os.kill(worker.health.pid, signal.SIGSTOP)
    for value in range(10_000):
        worker.offer(image(value % 100), BASE)
        worker.take()
    assert worker.health.failures == 0
    os.kill(worker.health.pid, signal.SIGCONT)
    learn(worker, 2)


@pytest.mark.parametrize(
    ("value", "reason"), [(254, "not finite"), (253, "exit code 7"), (252, "no sign of life")]
)
def test_nonsense_exits_and_hangs_are_failures(worker: Supervisor, value: int, reason: str) -> None:
    good = [learn(worker, value) for value in (1, 2, 3)][-1]
    wait_for(lambda: worker.ready)
    worker.offer(image(value), BASE)
    wait_for(lambda: worker.health.failures == 1)
    assert reason in (worker.health.reason or "")
    assert learn(worker, 2)[0] > good[0] >= 3


def test_restarts_come_later_each_time(tiny_bundle: Bundle) -> None:
    job = Job(str(tiny_bundle.path), "worker_jobs:NoSuchJob", SHAPE)
    patience = Patience(start=60, pause=0.01, longest=100.0)
    worker = Supervisor(job, np.zeros(4, np.float32), patience)
    wait_for(lambda: worker.health.failures >= 2)
    assert worker.take() is None and "exit code 1" in (worker.health.reason or "")
    worker.close()
    assert worker.health.failures <= 4


def test_reset_begins_anew(worker: Supervisor) -> None:
    learn(worker, 1)
    worker.reset(np.full(4, 10, np.float32))
    assert worker.take() is None
    assert learn(worker, 3)[0] >= 11
    assert worker.health.failures == 0


def write(root: Path, name: str, text: str) -> None:
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_it_rests_by_its_duty_while_hot_and_on_a_low_battery(tmp_path: Path) -> None:
    zone, supply = "/sys/class/thermal/thermal_zone0", "/sys/class/power_supply/BAT0"
    for name, text in (("type", "cpu"), ("temp", "60000"), ("trip_point_0_type", "critical")):
        write(tmp_path, f"{zone}/{name}", text)
    write(tmp_path, f"{zone}/trip_point_0_temp", "100000")
    machine, slept = Machine(tmp_path), []
    job = Job("", "", SHAPE, duty=0.25)
    assert len(list(rests(1.5, job, machine, slept.append))) == 5 and sum(slept) == 4.5

    write(tmp_path, f"{zone}/temp", "95000")

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > 20:
            write(tmp_path, f"{zone}/temp", "70000")

    slept.clear()
    list(rests(0.0, job, machine, sleep))
    assert len(slept) == 21

    for name, text in (("type", "Battery"), ("status", "Discharging"), ("capacity", "20")):
        write(tmp_path, f"{supply}/{name}", text)
    assert must_wait(machine, job)
    write(tmp_path, f"{supply}/status", "Charging")
    assert not must_wait(machine, job)
