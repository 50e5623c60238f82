"""What an adapter would lead to, found out on frames that are held, before anything uses it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
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
    without a pass, from all but the last of the frames it is judged on. It is perceived on these as
    they come; their results under the adapter in use exist already.

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
        self._judged = list(held)[-wanted:]
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
        new = [pair for pair in self._held if not any(pair is known for known in self._judged)]
        self._judged += new[: self._wanted - len(self._judged)]
        for _ in range(passes + (self.age == 1)):
            if next(self._passes, None) is None:
                self.done = True
                break
        return self.done

    def _run(self) -> Iterator[bool]:
        """Yields before each forward pass, and where frames are waited for."""
        predict, told = getattr(self.strategy, "predict", None), 0
        if self._given is None and predict is None:
            yield from self._rehearse()
            if self.candidate is self.current:
                return
        elif self._given is None:
            told = max(1, self._wanted - 1)
        now: list[Evidence] = []
        then: list[Evidence] = []
        for index in range(self._wanted):
            while len(self._judged) <= index:
                yield False
            frame, result = self._judged[index]
            now.append((yield from self._evidence(index, self.current, result)))
            if predict is not None and index < told:
                self.candidate = predict(frame)
            while index + 1 >= told and len(then) <= index:
                then.append((yield from self._evidence(len(then), self.candidate)))
        self.outcomes = (
            self.guard.outcome(self.current, now),
            self.guard.outcome(self.candidate, then),
        )

    def _evidence(
        self, index: int, adapter: np.ndarray, result: Result | None = None
    ) -> Generator[bool, None, Evidence]:
        """What a judged frame says under an adapter; its result, if it is known already."""
        frame, mirrored = self._judged[index][0], None
        if result is None:
            yield True
            result = self.probe(frame, adapter)
        if index < _MIRRORED:
            yield True
            mirrored = mirror_pass(lambda turned: self.probe(turned, adapter), frame)
        return self.guard.evidence(result, mirrored, frame)

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
