"""The learner: watches perception, and says which adapter it should use from the next frame on."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edge_runtime.adaptation.course import Course
from edge_runtime.adaptation.drift import Drift, DriftMonitor
from edge_runtime.adaptation.faults import fault_of, may_be_frozen
from edge_runtime.adaptation.frame_memory import FrameMemory, StoreError
from edge_runtime.adaptation.guard import Guard
from edge_runtime.adaptation.memory import PlaceMemory
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.splash import SplashMonitor
from edge_runtime.adaptation.store import AdapterStore
from edge_runtime.adaptation.strategies import create_strategy
from edge_runtime.adaptation.trial import Probe
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.perception import Perception
from edge_runtime.telemetry import Counters

log = logging.getLogger(__name__)
Mode = Literal["off", "shadow", "on"]
MODES = ("off", "shadow", "on")
_OFFER = 5  # one frame in so many may be kept to learn from later


@dataclass(frozen=True)
class Decision:
    """What follows from one frame.

    Attributes:
        adapter: float32 [A], to use from the next frame on.
        changed: Whether it differs from that of the decision before.
        event: What happened, such as "promoted", "refused", "recalled", "home", "rolled back".
        drift: What the monitor made of the frame, or of the one before where it was not looked at
            closely; None for a fault.
        fault: What is wrong with the frame, if anything; see `fault_of`.
        lens: "dirt on the lens" or "lens clean" on the frame that shows it; see `SplashMonitor`.
            It changes no adapter: somebody should wipe the lens.
    """

    adapter: np.ndarray
    changed: bool
    event: str | None
    drift: Drift | None
    fault: str | None
    lens: str | None = None


class Learner:
    """Decides, frame by frame, which adapter perception should use. Thread-safe.

    Args:
        bundle: The network that perception runs.
        strategy: How candidates are found; see `strategy_names`.
        mode: "on" gives adapters to use; "shadow" decides the same and gives the identity; "off"
            only watches drift.
        store: Keeps promoted adapters, for `resume` among others; None keeps none.
        memory: Places known by their statistics; None knows none.
        guard: Judges candidates and watches what was promoted; made for the bundle if None.
        probe: Perceives a held frame under an adapter; a perception of the learner's own, on one
            thread, if None.
        threshold: Of drift; see `DriftMonitor`.
        frames: Keeps frames to learn from later; None keeps none.
        every: At home, and at a place that the strategy knows, one frame in so many is looked at
            closely; of the others only those that look unlike it.
        options: The strategy's own.
    """

    def __init__(
        self,
        bundle: Bundle,
        strategy: str = "align",
        mode: Mode | str = "on",
        store: AdapterStore | None = None,
        memory: PlaceMemory | None = None,
        guard: Guard | None = None,
        probe: Probe | None = None,
        threshold: float | None = None,
        frames: FrameMemory | None = None,
        every: int = 4,
        **options: Any,
    ) -> None:
        if mode not in MODES:
            raise InputError(f"mode '{mode}' is unknown; expected {', '.join(MODES)}")
        if every < 1:
            raise InputError(f"every is {every} frames, expected at least 1")
        self.mode, self.bundle, self.every = mode, bundle, every
        self.strategy = create_strategy(strategy, bundle, **options)
        self.guard = guard or Guard(bundle)
        self.monitor = DriftMonitor(Reference.of(bundle), threshold)
        self.splash = SplashMonitor()
        self.counters = Counters()
        self._frames = frames
        self._own: Perception | None = None
        self._course = Course(
            self.strategy,
            self.guard,
            store,
            memory,
            probe or self._own_probe,
            self.monitor,
            closed=mode == "on",
        )
        self._identity = self._given = self._course.adapter
        self._previous: Frame | None = None
        self._drift: Drift | None = None
        self._unseen = self._unoffered = 0  # frames since the last one looked at, and an offer
        self._frozen = False
        self._lock = threading.RLock()

    def observe(self, frame: Frame, result: Result) -> Decision:
        """Take one frame with its result, perceived under the adapter of the last decision.

        Args:
            frame: As it went into perception.
            result: With `statistics`.
        """
        with self._lock:
            self.counters.add("frames")
            self._unoffered += 1
            previous, self._previous = self._previous, frame
            if self._passes(frame, previous, result):
                self.counters.add("passed")
                lens = self._look_at_lens(frame, self._drift) if self._drift is not None else None
                return self._decide(None, self._drift, None, lens)
            fault = fault_of(frame, previous)
            statistics = result.statistics
            if fault is None and (statistics is None or not np.isfinite(statistics).all()):
                fault = "no statistics" if statistics is None else "not finite"
            event, drift, lens = None, None, None
            if fault is not None:
                self.counters.add("faults")
            elif statistics is not None:
                drift = self.monitor.update(statistics)
                lens = self._look_at_lens(frame, drift)
            if self.mode != "off" and not self._frozen:
                event = self._learn(frame, result, drift, fault)
            if self._unoffered >= _OFFER:
                self._unoffered = 0
                if self._frames is not None and fault is None:
                    self._offer(self._frames, frame, result)
            self._drift = drift
            return self._decide(event, drift, fault, lens)

    def freeze(self, frozen: bool = True) -> None:
        """Keep the adapter in use as it is, or learn on."""
        with self._lock:
            self._frozen = frozen

    def rollback(self) -> Decision:
        """Give the adapter in use up for the one promoted before it, or the identity."""
        with self._lock:
            self.guard.rollback()
            return self._decide(self._course.give_up("rolled back"), None, None)

    def resume(self) -> Decision:
        """Go on, after a restart, with the stored adapter that was in use last, if one was."""
        with self._lock:
            event = None if self.mode == "off" else self._course.resume()
            return self._decide(event, None, None)

    def reset(self) -> Decision:
        """Start anew with the identity; places and stored adapters are kept."""
        with self._lock:
            self.guard.reset()
            self.monitor.reset()
            self.splash = SplashMonitor()
            return self._decide(self._course.go_home("reset"), None, None)

    def snapshot(self) -> int | None:
        """Store the adapter in use now; its version, or None if it could not be stored."""
        with self._lock:
            return self._course.save({"event": "snapshot"})

    def prepare(self, frame: Frame) -> Frame:
        """The frame as perception should see it; most strategies leave it as it is."""
        prepare = getattr(self.strategy, "prepare", None)
        return frame if prepare is None or self.mode != "on" else prepare(frame)

    @property
    def adapter(self) -> np.ndarray:
        """float32 [A], the adapter to use now."""
        return self._given

    @property
    def adapted(self) -> bool:
        """Whether an adapter other than the identity is in use, or would be without the shadow."""
        return self._course.adapted

    def _own_probe(self, frame: Frame, adapter: np.ndarray) -> Result:
        if self._own is None:
            self._own = Perception(self.bundle, threads=1)
        self._own.adapter = adapter
        return self._own(frame)

    def _passes(self, frame: Frame, previous: Frame | None, result: Result) -> bool:
        """Whether a frame need not be looked at closely, but for dirt."""
        self._unseen += 1
        calm = self._drift is not None and self._drift.event is None and self.guard.frozen is None
        due = self._unseen >= self.every or not calm or self.mode != "on" or self._frozen
        passes = (
            not due
            and previous is not None
            and not may_be_frozen(frame, previous)
            and self._familiar(result)
        )
        if not passes:
            self._unseen = 0
        return passes

    def _familiar(self, result: Result) -> bool:
        """Whether a frame looks, at a glance, like the place where the robot is."""
        if self.adapted:
            return self._course.familiar(result)
        return result.statistics is not None and self.monitor.usual(result.statistics)

    def _learn(
        self, frame: Frame, result: Result, drift: Drift | None, fault: str | None
    ) -> str | None:
        if self.mode == "on" or not self.adapted or fault is not None:
            if event := self._course.watch(result, fault):
                return event
        event = None if drift is None else self._course.step(frame, result, drift)
        if event == "home":
            self.monitor.reset()  # its window still holds frames from elsewhere
        return event

    def _offer(self, frames: FrameMemory, frame: Frame, result: Result) -> None:
        """Offer a frame to the memory of frames; a full disk stops nothing."""
        try:
            self.counters.add("kept frames", int(frames.offer(frame, result).kept))
        except StoreError as error:
            if self.counters.add("frames not kept") == 1:
                log.warning("%s", error)

    def _look_at_lens(self, frame: Frame, drift: Drift) -> str | None:
        """What happened to the lens; not asked while a shift explains what changes."""
        if drift.suspected:
            self.splash = SplashMonitor()
            return None
        lens = self.splash.update(frame.image)
        if lens is not None:
            log.warning("%s", lens)
            self.counters.add(lens)
        return lens

    def _decide(
        self, event: str | None, drift: Drift | None, fault: str | None, lens: str | None = None
    ) -> Decision:
        if event is not None:
            self.counters.add(event)
        adapter = self._course.adapter if self.mode == "on" else self._identity
        changed = adapter is not self._given
        self._given = adapter
        return Decision(adapter, changed, event, drift, fault, lens)
