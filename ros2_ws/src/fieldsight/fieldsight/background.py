"""A process that must not take time from others, and how much time that leaves it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

_ASKED_S = 0.5  # of processor time: less says nothing about a share


def _threads() -> list[int]:
    """Of this process: on Linux priorities belong to threads, and new ones inherit."""
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]


def _low() -> str:
    for thread in _threads():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, 19)
    return "nice 19"


def _idle() -> str:
    """Only time that nobody else wants (SCHED_IDLE of sched(7)); needs no privilege."""
    said = _low()
    try:
        for thread in _threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        return f"{said}; SCHED_IDLE is not allowed here ({error.strerror})"
    return f"{said}, SCHED_IDLE"


PRIORITIES: dict[str, Callable[[], str]] = {
    "idle": _idle,
    "low": _low,
    "normal": lambda: "as started",
}


def set_priority(name: str) -> str:
    """Give every thread of this process a priority of `PRIORITIES`; says what was achieved."""
    try:
        return PRIORITIES[name]()
    except OSError as error:
        return f"as started: a lower one is not allowed here ({error.strerror})"


class ProcessorShare:
    """How much of the processor this process got of what it could have used.

    Linux counts for every thread how long it ran and how long it waited for a core to run on
    (`schedstat` of proc(5)); what sleeps does not wait.
    """

    def __init__(self) -> None:
        self._then = _scheduled()
        self._share: float | None = None

    def __call__(self) -> float | None:
        """Share since it was last measured, 0 to 1; None before that, or where nothing is told."""
        now = _scheduled()
        ran, waited = (
            sum(times[i] - self._then.get(thread, (0, 0))[i] for thread, times in now.items()) / 1e9
            for i in (0, 1)
        )
        if ran + waited >= _ASKED_S:
            self._share, self._then = ran / (ran + waited), now
        return self._share


def _scheduled() -> dict[int, tuple[int, int]]:
    """By thread, nanoseconds that it ran and that it waited."""
    found = {}
    for thread in _threads():
        with contextlib.suppress(OSError, ValueError):  # it ended, or this kernel does not count
            ran, waited, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
            found[thread] = int(ran), int(waited)
    return found
