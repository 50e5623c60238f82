"""Keeps a worker process at work without ever waiting for it where perception runs.

What perception calls only swaps references under a lock. A thread does the rest: it starts the
worker, hands it the newest frame when it is ready for one, takes what it learnt, and kills and
restarts it, later each time, when it dies, stalls or talks nonsense.
"""

from __future__ import annotations

import ctypes
import logging
import math
import multiprocessing
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from edge_runtime.adaptation.refinement.worker import Job, serve

log = logging.getLogger(__name__)
_POLL_S = 0.1
_SOUND = 5  # results after which earlier failures no longer count


@dataclass(frozen=True)
class Patience:
    """Seconds: until a worker has started, between its signs of life, and before restarts.

    The pause before a restart doubles with each failure in a row, from `pause` to `longest`.
    """

    start: float = 180.0
    silence: float = 300.0
    pause: float = 1.0
    longest: float = 300.0


@dataclass(frozen=True)
class Health:
    """How a worker fares.

    Attributes:
        pid: Process id, None while none runs.
        state: "starting", "ready", "working", "resting", "restarting" or "closed".
        learnt: Results so far.
        failures: Times it had to be started again.
        reason: Why, the last time.
    """

    pid: int | None
    state: str
    learnt: int
    failures: int
    reason: str | None


class Supervisor:
    """Runs a job in a process of its own. Calls are for one thread and never wait.

    Args:
        job: What the worker does.
        start: float32 [A], the adapter it starts from.
        patience: How long to wait for it.

    Attributes:
        gain: What the worker said for what it learnt last; 0 if it says nothing.
    """

    def __init__(self, job: Job, start: np.ndarray, patience: Patience | None = None) -> None:
        self.job, self.patience = job, patience or Patience()
        context = multiprocessing.get_context("spawn")
        self._context = context
        self._image = context.RawArray(ctypes.c_uint8, int(np.prod(job.shape)) * 3)
        self._base = context.RawArray(ctypes.c_float, len(start))
        self._adapter = context.RawArray(ctypes.c_float, len(start))
        self._lock = threading.Lock()
        self._offered: tuple[np.ndarray, np.ndarray] | None = None
        self._good = np.array(start, np.float32)
        self._fresh: np.ndarray | None = None
        self._again, self.gain = False, 0.0
        self._state = "starting"
        self._pid: int | None = None
        self._reason: str | None = None
        self._learnt = self._failures = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refinement", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the worker waits for a frame."""
        return self._state == "ready" and self._offered is None

    @property
    def health(self) -> Health:
        """How the worker fares now."""
        return Health(self._pid, self._state, self._learnt, self._failures, self._reason)

    def offer(self, image: np.ndarray, base: np.ndarray) -> None:
        """Give the newest frame; one that the worker has not taken yet is replaced.

        Args:
            image: uint8 [H, W, 3] at the network's size, not to be changed afterwards.
            base: float32 [A], the adapter that the learnt one comes on top of.
        """
        with self._lock:
            self._offered = image, base

    def take(self) -> np.ndarray | None:
        """What was learnt since the last call, float32 [A], or None."""
        with self._lock:
            fresh, self._fresh = self._fresh, None
        return fresh

    def reset(self, start: np.ndarray) -> None:
        """Begin anew from an adapter; the worker is replaced by another."""
        with self._lock:
            self._good, self._fresh = np.array(start, np.float32), None
            self._offered, self._again = None, True

    def close(self) -> None:
        """End the worker."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        in_a_row = 0
        while not self._closing.is_set():
            before = self._learnt
            self._again = False
            reason = self._attend_one()
            self._pid = None
            if reason is None:
                continue
            self._failures, self._reason = self._failures + 1, reason
            in_a_row = 1 if self._learnt - before >= _SOUND else in_a_row + 1
            wait = min(self.patience.pause * 2 ** (in_a_row - 1), self.patience.longest)
            log.warning("refinement: %s; starting again in %.0f s", reason, wait)
            self._state = "restarting"
            self._closing.wait(wait)
        self._state = "closed"

    def _attend_one(self) -> str | None:
        """Start a worker and attend to it; returns why it had to go, None if asked for."""
        self._state = "starting"
        ours, theirs = self._context.Pipe()
        with self._lock:
            self._view(self._adapter)[:] = self._good
        words = (theirs, self._image, self._base, self._adapter, self.job)
        process: Any = self._context.Process(target=serve, args=words, daemon=True)
        try:
            process.start()
        except OSError as error:
            return f"the worker could not be started: {error}"
        self._pid = process.pid
        theirs.close()
        try:
            return self._attend(ours)
        except ValueError as error:
            return f"the worker talks nonsense: {error}"
        except (EOFError, OSError):
            process.join(5)
            return f"the worker ended with exit code {process.exitcode}"
        finally:
            process.kill()  # ends a stopped process, too
            process.join()
            ours.close()

    def _attend(self, connection: Connection) -> str | None:
        heard, limit = time.monotonic(), self.patience.start
        while not self._closing.is_set() and not self._again:
            if connection.poll(_POLL_S):
                word, _, gain = str(connection.recv()).partition(":")
                heard, limit = time.monotonic(), self.patience.silence
                if word == "learnt" and not self._keep(gain):
                    return "the worker's adapter is not finite"
                self._state = word if word in ("ready", "resting") else "resting"
            if self._state == "ready":
                heard = time.monotonic()
                if self._hand_over():
                    self._state = "working"
                    connection.send("learn")
            elif time.monotonic() - heard > limit:
                return f"no sign of life from the worker for {limit:.0f} s"
        return None

    def _hand_over(self) -> bool:
        with self._lock:
            offered, self._offered = self._offered, None
        if offered is None:
            return False
        pixels = np.ctypeslib.as_array(self._image).reshape(*self.job.shape, 3)
        pixels[:], self._view(self._base)[:] = offered
        return True

    def _keep(self, gain: str) -> bool:
        found, said = self._view(self._adapter).copy(), float(gain or 0)
        if not (np.isfinite(found).all() and math.isfinite(said)):
            return False
        with self._lock:
            if not self._again:
                self._good = self._fresh = found
                self.gain = said
        self._learnt += 1
        return True

    @staticmethod
    def _view(shared: Any) -> np.ndarray:
        return np.ctypeslib.as_array(shared)
