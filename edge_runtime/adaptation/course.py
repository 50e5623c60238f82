"""Where the learner stands: at home with the identity, or adapted to somewhere else.

Away from home an adapter belongs to the statistics it was found for. As soon as frames look more
like home than like there, home's adapter, the identity, is used again; what was found is
remembered by the place's statistics and used at once when frames look like it again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_runtime.adaptation.drift import Drift, DriftMonitor
from edge_runtime.adaptation.guard import Guard
from edge_runtime.adaptation.memory import PlaceMemory
from edge_runtime.adaptation.source import pooled
from edge_runtime.adaptation.store import AdapterStore, StoreError
from edge_runtime.adaptation.strategies import Refining, Strategy
from edge_runtime.adaptation.trial import Held, Probe, Trial
from edge_runtime.frames import Frame, Result

log = logging.getLogger(__name__)

HELD = 3  # frames on which candidates are found and judged
_PASSES = 4  # most forward passes that a trial adds to one frame
_STALE = 10  # frames after which a trial whose shift was not declared is begun anew
_MOMENTUM = 0.05  # of a place's running statistics
_SURE = 2  # frames in a row that must look like home
_CLEAR = 4.0  # times nearer to home than to the place: one frame is enough
_ELSEWHERE = 5  # frames in a row that must look like neither
_PATIENCE = 4  # frames before another attempt after a refusal; longer after each, up to
_LONGER, _MOST_PATIENCE = 2, 2048
_SHADOW = 5  # in the shadow, every so many frames are perceived under the adapter
_SAVE = 200  # frames between two savings of an adapter that is being followed
PLACE = "place"  # in the note of a stored adapter: the signature of where it was in use


@dataclass
class _Place:
    """Running statistics of the first point, away from home."""

    mean: np.ndarray
    square: np.ndarray

    def follow(self, mean: np.ndarray, var: np.ndarray) -> None:
        self.mean = self.mean + _MOMENTUM * (mean - self.mean)
        self.square = self.square + _MOMENTUM * (var + np.square(mean) - self.square)

    @property
    def var(self) -> np.ndarray:
        return np.maximum(self.square - np.square(self.mean), 0)

    @property
    def signature(self) -> np.ndarray:
        return np.concatenate([self.mean, self.var]).astype(np.float32)


class Course:
    """Moves between home and adapted, one frame at a time.

    Args:
        strategy: Finds candidates.
        guard: Judges and watches them; its reference is home.
        store: Keeps promoted adapters.
        memory: Knows places.
        probe: Perceives a held frame under an adapter.
        monitor: Knows how far home reaches.
        closed: Whether frames come perceived under `adapter`; else under the identity.
    """

    def __init__(
        self,
        strategy: Strategy,
        guard: Guard,
        store: AdapterStore | None,
        memory: PlaceMemory | None,
        probe: Probe,
        monitor: DriftMonitor,
        closed: bool,
    ) -> None:
        self.strategy, self.guard, self.reference = strategy, guard, guard.reference
        self._refining = strategy if isinstance(strategy, Refining) else None
        self.store, self.memory, self.probe = store, memory, probe
        self.source, self.threshold, self.closed = monitor.source, monitor.threshold, closed
        ones, zeros = np.ones_like(self.reference.mean), np.zeros_like(self.reference.mean)
        self.identity = self.adapter = self.reference.join(ones, zeros)
        self._held: deque[tuple[Frame, Result]] = deque(maxlen=HELD)
        self._place: _Place | None = None
        self._trial: Trial | None = None
        self._merit: str | None = None
        self._wait, self._patience = 0, _PATIENCE
        self._homely, self._strange, self._age = 0, 0, 0

    @property
    def adapted(self) -> bool:
        """Whether an adapter other than home's is in use."""
        return self._place is not None

    def step(self, frame: Frame, result: Result, drift: Drift) -> str | None:
        """Take one frame that is no fault; returns what happened, if anything."""
        self._held.append((frame, result))
        if self._place is None:
            return self._seek(drift)
        return self._follow(frame, result, drift, self._place)

    def go_home(self, event: str) -> str:
        """Use the identity from now on, and remember the place that is left."""
        left = self._place
        if left is not None and event in ("home", "elsewhere"):
            self._remember(left)
        self._place, self.adapter = None, self.identity
        if left is not None:
            self.save({"event": event})  # else a restart would resume what was left
        self._homely = self._strange = 0
        self._held.clear()
        self._trial = None
        self.strategy.reset()
        return event

    def familiar(self, result: Result) -> bool:
        """Whether a frame has nothing to tell: of a place that is known, and it looks like it."""
        place = self._place
        if place is None or self._trial is not None or self._homely or self._strange:
            return False
        if not getattr(self.strategy, "known", False) or result.statistics is None:
            return False
        home, here = self._distances(*self.reference.first_of(result.statistics), place)
        return here <= home and here <= self._strangeness(home)

    def give_up(self, event: str) -> str:
        """Go home because of what the adapter did, not because the world did; wait, then seek."""
        self._wait, self._patience = self._patience, min(_LONGER * self._patience, _MOST_PATIENCE)
        return self.go_home(event)

    def watch(self, result: Result, fault: str | None = None) -> str | None:
        """Let the guard see a result under the adapter; "alarm" if it took the adapter back."""
        alarm = self.guard.watch(result, fault)
        if alarm is None:
            return None
        log.warning("adapter taken back: %s", "; ".join(alarm.reasons))
        return self.give_up("alarm")

    def save(self, note: dict[str, object]) -> int | None:
        """Store the adapter in use; its version, or None if there is no store or it failed."""
        if self._place is not None:
            note = {**note, PLACE: self._place.signature}
        try:
            return None if self.store is None else self.store.save(self.adapter, note)
        except StoreError as error:
            log.warning("not stored: %s", error)
            return None

    def resume(self) -> str | None:
        """Use the adapter that was in use when the program ended, if any; it stays under watch.

        What belongs to it is where it was found: should the robot be elsewhere now, the next frames
        tell, as they would have without the interruption.
        """
        stored = None if self.store is None else self.store.load()
        if stored is None or self.guard.refusal(stored.adapter) is not None:
            return None
        place = _signature_of(stored.note, 2 * self.reference.first.stop)
        if place is None:
            return None
        self.strategy.reset(stored.adapter)
        self.guard.promoted(stored.adapter)
        self._settle(stored.adapter, *np.split(place, 2))
        return "resumed"

    def _seek(self, drift: Drift) -> str | None:
        """At home: is this a known place, or one to find an adapter for?"""
        self._wait = max(0, self._wait - 1)
        if len(self._held) == HELD and (event := self._recall()):
            return event
        if not drift.suspected or self._wait or self.guard.frozen is not None:
            self._trial = None  # after a fault the guard would refuse, and that would cost patience
            return None
        if self._trial is None or (self._trial.age >= _STALE and drift.state == "normal"):
            self.strategy.reset()
            while len(self._held) > 1:  # what came before the suspicion may be of another place
                self._held.popleft()
            self._trial = Trial(
                self.strategy, self.guard, self.probe, self.identity, self._held, HELD
            )
        if self._trial.advance(drift, _PASSES) and drift.state == "shifted":
            return self._judge(self._trial, drift)
        return None

    def _recall(self) -> str | None:
        """Use what is known of this place, if it is one that is known."""
        mean, var = self._recent()
        if self.memory is None or self._from_home(mean, var) <= self.threshold:
            return None
        place = self.memory.recall(np.concatenate([mean, var]))
        if place is None or self.guard.refusal(place.adapter) is not None:
            return None
        self.strategy.reset(place.adapter)
        self.guard.promoted(place.adapter)
        self._settle(place.adapter, mean, var)
        return "recalled"

    def _judge(self, trial: Trial, drift: Drift) -> str:
        """Let the guard decide on what a trial has found."""
        if trial.outcomes is None:
            return self.give_up("nothing proposed")
        verdict = self.guard.judge(*trial.outcomes)
        log.info("%s: %s", "promoted" if verdict.promote else "refused", "; ".join(verdict.reasons))
        if not verdict.promote:
            return self.give_up("refused")
        self.guard.promoted(trial.candidate, trial.outcomes[1])
        self._patience = _PATIENCE
        self._settle(trial.candidate, *self._recent())
        self.save({"event": "promoted", "drift": round(drift.score, 4)})
        return "promoted"

    def _settle(self, adapter: np.ndarray, mean: np.ndarray, var: np.ndarray) -> None:
        self._place = _Place(mean, var + np.square(mean))
        self.adapter, self._trial = adapter, None
        self._homely = self._strange = self._age = 0

    def _follow(self, frame: Frame, result: Result, drift: Drift, place: _Place) -> str | None:
        """Adapted: still there? Then follow the strategy by small steps."""
        self._age += 1
        mean, var = self._recent()
        home, here = self._distances(mean, var, place)
        self._homely = self._homely + 1 if home < here else 0
        if self._homely >= _SURE or drift.event == "return" or self._clearly_home(place):
            return self._left("home")
        self._strange = self._strange + 1 if here > self._strangeness(home) else 0
        if self._strange >= _ELSEWHERE:
            return self._left("elsewhere")
        if self._homely or self._strange:
            return None  # nothing to learn about this place from a frame of another
        place.follow(mean, var)
        if not self.closed:
            if self._age % _SHADOW:
                return None
            result = self.probe(frame, self.adapter)
            if event := self.watch(result):
                return event
        candidate = self.strategy.observe(frame, result, drift)
        if candidate is not None and self.guard.refusal(candidate) is None:
            self.adapter = candidate
            self.guard.followed(candidate)
        if self._age % _SAVE == 0:
            self.save({"event": "followed", "drift": round(drift.score, 4)})
        return self._refine(frame, drift)

    def _refine(self, frame: Frame, drift: Drift) -> str | None:
        """Let the strategy look for something better than small steps lead to, and try it."""
        if self._refining is None:
            return None
        if self._trial is None:
            found = self._refining.refine(frame, self.adapter)
            if found is not None:
                self._trial, self._merit = self._trial_of(found.adapter), found.merit
            return None
        if not self._trial.advance(drift, _PASSES):
            return None
        trial, self._trial = self._trial, None
        assert trial.outcomes is not None
        verdict = self.guard.judge(*trial.outcomes, self._merit)
        if not verdict.promote:
            return "not refined"
        self._refining.accepted(trial.candidate)
        self.guard.promoted(trial.candidate, trial.outcomes[1])
        self.adapter = trial.candidate
        self.save({"event": "refined", "drift": round(drift.score, 4)})
        return "refined"

    def _trial_of(self, candidate: np.ndarray) -> Trial:
        """A trial of a candidate against the adapter in use."""
        held: Held = self._held
        if not self.closed:  # in the shadow the held results are those of the network as trained
            held = [(frame, self.probe(frame, self.adapter)) for frame, _ in held]
        return Trial(self.strategy, self.guard, self.probe, self.adapter, held, HELD, candidate)

    def _left(self, event: str) -> str:
        self.guard.reset()
        return self.go_home(event)

    def _clearly_home(self, place: _Place) -> bool:
        """Whether the newest frame alone leaves no doubt."""
        home, here = self._distances(*self._recent(1), place)
        return _CLEAR * home < here

    def _recent(self, count: int = HELD) -> tuple[np.ndarray, np.ndarray]:
        """The first point's mean and variance over the newest of the held frames."""
        newest = list(self._held)[-count:]
        held = [result.statistics for _, result in newest if result.statistics is not None]
        return pooled(*self.reference.first_of(np.stack(held)))

    def _from_home(self, mean: np.ndarray, var: np.ndarray) -> float:
        """Distance of first-point statistics from home's."""
        return self.source.distance(self.source.features_of(mean, var))

    def _distances(self, mean: np.ndarray, var: np.ndarray, place: _Place) -> tuple[float, float]:
        """Distances of first-point statistics from home's and from a place's."""
        features = self.source.features_of(mean, var)
        there = self.source.features_of(place.mean, place.var)
        return self.source.distance(features), self.source.distance(features, there)

    def _strangeness(self, home: float) -> float:
        """Distance from the place above which frames so far from home are of neither."""
        return max(2 * self.threshold, home / 2)

    def _remember(self, place: _Place) -> None:
        if self.memory is None:
            return
        try:
            self.memory.remember(place.signature, self.adapter, {"frames": self._age})
        except StoreError as error:
            log.warning("remembered until the program ends: %s", error)


def _signature_of(note: Mapping[str, object], size: int) -> np.ndarray | None:
    """The place that a stored adapter was in use at, float32 [size]; None for the identity."""
    try:
        place = np.array(note.get(PLACE), np.float32)
    except (TypeError, ValueError):
        return None
    return place if place.shape == (size,) and np.isfinite(place).all() else None
