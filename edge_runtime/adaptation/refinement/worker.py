"""The process that refines: low priority, one thread, a duty cycle, and rest while it is hot."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from edge_runtime.adaptation.power import battery, thermal_margin
from edge_runtime.doctor.machine import Machine

HEARTBEAT_S = 1.0  # a worker that rests says so as often


@dataclass(frozen=True)
class Job:
    """What a worker does.

    Attributes:
        bundle: Folder of the bundle.
        target: "module:factory" of a callable of a bundle and options with ``learn(image, base)``;
            its ``gain``, if it has one, is what it can say for what it learnt last.
        options: For the factory.
        shape: (height, width) of the images.
        duty: Share of the time that may be spent working.
        cool: Degrees below the kernel's limit that the machine must have left, to work.
        least_battery: Charge below which a discharging battery is spared, 0 to 1.
    """

    bundle: str
    target: str
    shape: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)
    duty: float = 0.2
    cool: float = 12.0
    least_battery: float = 0.3


def serve(connection: Connection, image: Any, base: Any, adapter: Any, job: Job) -> None:
    """Main function of the process; ends when the other side is gone.

    Messages are single words, so that none is ever half written; what is large lies in shared
    memory, which each side touches only while it is its turn.

    Args:
        connection: To the supervisor.
        image: Shared bytes of one image.
        base: Shared float32 [A], the adapter that the learnt one comes on top of.
        adapter: Shared float32 [A]: where to start, and then what was learnt.
        job: What to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's to handle
    yield_to_others()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(connection, image, base, adapter, job)


def yield_to_others() -> None:
    """Run only when nothing else wants the processor, where the system can do that."""
    with contextlib.suppress(OSError):
        os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _serve(connection: Connection, image: Any, base: Any, adapter: Any, job: Job) -> None:
    from edge_runtime.bundle import open_bundle

    module, _, factory = job.target.partition(":")
    method = getattr(importlib.import_module(module), factory)(
        open_bundle(job.bundle, verify=False), threads=1, **job.options
    )
    pixels = np.ctypeslib.as_array(image).reshape(*job.shape, 3)
    under, learnt = np.ctypeslib.as_array(base), np.ctypeslib.as_array(adapter)
    method.reset(learnt)
    machine = Machine()
    while True:
        connection.send("ready")
        if connection.recv() != "learn":
            return
        start = time.monotonic()
        found = method.learn(pixels.copy(), under.copy())
        if found is not None:
            learnt[:] = found
        gain = getattr(method, "gain", None)
        said = "learnt" if gain is None else f"learnt:{gain:.4f}"
        connection.send("none" if found is None else said)
        busy = time.monotonic() - start
        for _ in rests(busy, job, machine):
            connection.send("resting")


def rests(
    busy: float,
    job: Job,
    machine: Machine,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Sleep off the duty cycle, and on while the machine is hot or its battery low.

    Yields:
        Once a heartbeat.
    """
    left = busy * (1 / job.duty - 1)
    while left > 0:
        sleep(min(left, HEARTBEAT_S))
        left -= HEARTBEAT_S
        yield
    while must_wait(machine, job):
        sleep(HEARTBEAT_S)
        yield


def must_wait(machine: Machine, job: Job) -> bool:
    """Whether heat or battery forbid to work now."""
    margin, charge = thermal_margin(machine), battery(machine)
    hot = margin is not None and margin < job.cool
    return hot or (charge is not None and charge < job.least_battery)
