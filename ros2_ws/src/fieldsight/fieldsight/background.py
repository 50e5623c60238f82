"""A process that must not take time from others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


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
