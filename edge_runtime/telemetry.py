"""What a running robot reports about itself: latency percentiles, counters, health."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


class LatencyWindow:
    """Percentiles of the most recent durations, in memory that does not grow.

    Args:
        size: How many durations are remembered.
    """

    def __init__(self, size: int = 1000) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1")
        self._values = np.zeros(size)
        self._count = 0
        self._lock = threading.Lock()

    def add(self, milliseconds: float) -> None:
        """Remember one duration, forgetting the oldest if the window is full."""
        with self._lock:
            self._values[self._count % len(self._values)] = milliseconds
            self._count += 1

    def __len__(self) -> int:
        return min(self._count, len(self._values))

    @property
    def total(self) -> int:
        """Durations ever added."""
        return self._count

    def percentile(self, percent: float) -> float:
        """Milliseconds below which `percent` of the window lies; NaN if it is empty."""
        with self._lock:
            kept = self._values[: len(self)]
            return float(np.percentile(kept, percent)) if len(kept) else float("nan")

    def summary(self) -> dict[str, float]:
        """The 50th, 90th and 99th percentile as "p50", "p90", "p99", in milliseconds."""
        return {f"p{percent}": self.percentile(percent) for percent in (50, 90, 99)}


class Counters:
    """Named counts that several threads may raise."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1) -> int:
        """Raise a count and return it."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount
            return self._counts[name]

    def __getitem__(self, name: str) -> int:
        return self._counts.get(name, 0)

    def snapshot(self) -> dict[str, int]:
        """All counts at this moment."""
        with self._lock:
            return dict(sorted(self._counts.items()))


@dataclass(frozen=True, slots=True)
class HealthReport:
    """State at one moment: "ok", "stale" (no result for too long) or "error"."""

    level: str
    message: str
    values: dict[str, float | int] = field(default_factory=dict)


class Health:
    """Sums up whether results keep coming.

    Args:
        stale_after_s: Seconds without a result after which the state is "stale".
        clock: Seconds, monotonic.
    """

    def __init__(
        self, stale_after_s: float = 2.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.latency = LatencyWindow()
        self.counters = Counters()
        self._stale_after = stale_after_s
        self._clock = clock
        self._last_result: float | None = None
        self._error = ""

    def result(self, milliseconds: float) -> None:
        """Note that a frame was answered; clears an earlier error."""
        self.latency.add(milliseconds)
        self.counters.add("frames")
        self._last_result = self._clock()
        self._error = ""

    def error(self, message: str) -> None:
        """Note a failure; it is reported until the next result."""
        self.counters.add("errors")
        self._error = message or "unknown error"

    def report(self) -> HealthReport:
        """The state now, with latency percentiles and counts."""
        values: dict[str, float | int] = dict(self.counters.snapshot())
        if len(self.latency):
            values |= {f"latency_{name}_ms": ms for name, ms in self.latency.summary().items()}
        if self._error:
            return HealthReport("error", self._error, values)
        if self._last_result is None:
            return HealthReport("stale", "no frame yet", values)
        age = self._clock() - self._last_result
        if age > self._stale_after:
            return HealthReport("stale", f"no result for {age:.1f} s", values)
        return HealthReport("ok", "running", values)
