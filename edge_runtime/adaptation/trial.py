"""What an adapter would lead to, found out on frames that are held, before anything uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.evidence import Evidence, Outcome, mirror_pass
from edge_runtime.adaptation.guard import Guard
from edge_runtime.adaptation.strategies import Strategy
from edge_runtime.frames import Frame, Result
from edge_runtime.perception import Perception

Probe = Callable[[Frame, np.ndarray], Result]  # a frame perceived under an adapter [A]
Held = Sequence[tuple[Frame, Result]]

_REHEARSAL = 6  # steps of a rehearsal: the first sees a result that exists, the others cost a pass
_MIRRORED = 2  # frames whose mirror image is perceived, once under either adapter


def probe_of(perception: Perception) -> Probe:
    """A probe that borrows a perception between two of its frames, and gives it back as it was.

    Detections are those of the score threshold that the perception has now, whatever it is judged
    at later.
    """
    score = perception.score_threshold

    def probe(frame: Frame, adapter: np.ndarray) -> Result:
        before = perception.adapter, perception.score_threshold
        perception.adapter, perception.score_threshold = adapter, score
        try:
            return perception(frame)
        finally:
            perception.adapter, perception.score_threshold = before

    return probe


class Trial:
    """A candidate on its way to the guard, by a few forward passes a frame.

    The strategy finds it in closed loop on the newest of the held frames; one that predicts does so
    from all of them, without a pass. Then it is perceived on all of those held by then, whose
    results under the adapter in use exist already.

    Args:
        strategy: As reset as it should start.
        guard: Reads the evidence.
        probe: Runs the passes.
        current: float32 [A], the adapter in use.
        held: The newest frames with their results under it, at least one; the caller adds to it.
        wanted: How many frames the candidate is judged on.
        candidate: float32 [A], if it is known already: nothing is sought then.

    Attributes:
        candidate: float32 [A], as far as it is found; `current` while nothing was proposed.
        outcomes: What the adapter in use and the candidate lead to; None until the last pass.
        done: Whether there is nothing left to find out.
        age: Frames since it began.
    """

    def __init__(
        self,
        strategy: Strategy,
        guard: Guard,
        probe: Probe,
        current: np.ndarray,
        held: Held,
        wanted: int,
        candidate: np.ndarray | None = None,
    ) -> None:
        self.strategy, self.guard, self.probe = strategy, guard, probe
        self.current, self._given = current, candidate
        self.candidate = current if candidate is None else candidate
        self.outcomes: tuple[Outcome, Outcome] | None = None
        self.done, self.age = False, 0
        self._held, self._wanted = held, wanted
        self._drift: Drift | None = None
        self._passes = self._run()

    def advance(self, drift: Drift, passes: int) -> bool:
        """Spend at most so many forward passes; whether there is nothing left to find out.

        Args:
            drift: What the monitor makes of the newest frame.
            passes: Of the network.
        """
        # A candidate is sought before the shift is declared, so that it is there when it is.
        self._drift = replace(drift, state="shifted")
        self.age += 1
        for _ in range(passes + (self.age == 1)):
            if next(self._passes, None) is None:
                self.done = True
                break
        return self.done

    def _run(self) -> Iterator[bool]:
        """Yields before each forward pass, and where frames are waited for."""
        predict = getattr(self.strategy, "predict", None)
        if self._given is None and predict is None:
            yield from self._rehearse()
            if self.candidate is self.current:
                return
        while len(self._held) < self._wanted:
            yield False
        if self._given is None and predict is not None:
            for frame, _ in list(self._held):
                self.candidate = predict(frame)
        now: list[Evidence] = []
        then: list[Evidence] = []
        for index, (frame, result) in enumerate(list(self._held)):
            yield True
            found = self.probe(frame, self.candidate)
            for adapter, of, into in ((self.current, result, now), (self.candidate, found, then)):
                mirrored = None
                if index < _MIRRORED:
                    yield True
                    mirrored = self._mirrored(frame, adapter)
                into.append(self.guard.evidence(of, mirrored, frame))
        self.outcomes = (
            self.guard.outcome(self.current, now),
            self.guard.outcome(self.candidate, then),
        )

    def _mirrored(self, frame: Frame, adapter: np.ndarray) -> Result:
        return mirror_pass(lambda turned: self.probe(turned, adapter), frame)

    def _rehearse(self) -> Iterator[bool]:
        frame, result = self._held[-1]
        for step in range(_REHEARSAL):
            if step:
                yield True
                frame = self._held[-1 - step % len(self._held)][0]
                result = self.probe(frame, self.candidate)
            assert self._drift is not None
            proposed = self.strategy.observe(frame, result, self._drift)
            if proposed is None:
                return
            self.candidate = proposed
