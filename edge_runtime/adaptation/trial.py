"""What an adapter would lead to, found out on frames that are held, before anything uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.evidence import Outcome, mirror_pass
from edge_runtime.adaptation.guard import Guard
from edge_runtime.adaptation.strategies import Strategy
from edge_runtime.frames import Frame, Result
from edge_runtime.perception import Perception

Probe = Callable[[Frame, np.ndarray], Result]  # a frame perceived under an adapter [A]


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


def rehearse(
    strategy: Strategy,
    probe: Probe,
    frames: Sequence[Frame],
    drift: Drift,
    adapter: np.ndarray,
    passes: int,
) -> np.ndarray:
    """Let a strategy find its adapter in closed loop on held frames: one forward pass a step.

    Args:
        strategy: As reset as it should start.
        probe: Runs the passes.
        frames: At least one; gone through again and again.
        drift: What the monitor makes of them.
        adapter: float32 [A] to start from.
        passes: How many steps.

    Returns:
        float32 [A], the last adapter proposed; `adapter` itself if none was.
    """
    for step in range(passes):
        frame = frames[step % len(frames)]
        proposed = strategy.observe(frame, probe(frame, adapter), drift)
        if proposed is None:
            break
        adapter = proposed
    return adapter


def outcome_of(
    guard: Guard,
    adapter: np.ndarray,
    probe: Probe,
    frames: Sequence[Frame],
    mirrored: int,
    results: Sequence[Result] | None = None,
) -> Outcome:
    """What an adapter leads to on frames.

    Args:
        guard: Reads the evidence.
        adapter: float32 [A].
        probe: Runs the passes.
        frames: To perceive.
        mirrored: Of how many frames the mirror image is perceived, too.
        results: Of the frames under this adapter, where they exist already.
    """
    evidence = []
    for index, frame in enumerate(frames):
        result = probe(frame, adapter) if results is None else results[index]
        mirror = None
        if index < mirrored:
            mirror = mirror_pass(lambda turned: probe(turned, adapter), frame)
        evidence.append(guard.evidence(result, mirror, frame))
    return guard.outcome(adapter, evidence)
