"""A trial: the passes it spends, what it finds out, and when it begins anew."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from colours import IDENTITY, World, scene

from edge_runtime.adaptation.alignment import Alignment
from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.guard import Guard
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.strategies import NoStrategy, Strategy
from edge_runtime.adaptation.trial import Trial, probe_of
from edge_runtime.frames import Frame, Result
from edge_runtime.perception import Perception

LIGHT = np.array([1.0, 0.6, 0.35])
NORMAL = Drift(0.0, "normal", 1)


class Bench:
    """A trial over frames in coloured light, and how many passes it has spent."""

    def __init__(self, world: World, strategy: Strategy, held: int = 3) -> None:
        self.perception = Perception(world.bundle, threads=1)
        self.held: deque[tuple[Frame, Result]] = deque(maxlen=3)
        self.passes, self._probe = 0, probe_of(self.perception)
        self.see(held)
        guard = Guard(world.bundle)
        self.trial = Trial(strategy, guard, self.probe, IDENTITY, self.held, 3)

    def see(self, count: int) -> None:
        for _ in range(count):
            image = (scene(4000 + len(self.held)) * LIGHT).astype(np.uint8)
            frame = Frame(image, 0, "")
            self.held.append((frame, self.perception(frame)))

    def probe(self, frame: Frame, adapter: np.ndarray) -> Result:
        self.passes += 1
        return self._probe(frame, adapter)


@pytest.mark.parametrize("passes", [1, 3, 5, 100])
def test_it_spends_no_more_than_it_may_and_finds_the_same(world: World, passes: int) -> None:
    bench = Bench(world, Alignment(world.bundle, mean=0.8, amplify=0.8))
    spent = []
    while not bench.trial.done:
        before = bench.passes
        bench.trial.advance(NORMAL, passes)
        spent.append(bench.passes - before)
    assert max(spent) <= passes and sum(spent) == 12
    assert bench.trial.outcomes is not None
    current, candidate = bench.trial.outcomes
    assert (current.adapter == IDENTITY).all() and current.frames == candidate.frames == 3
    assert (candidate.adapter == bench.trial.candidate).all()
    assert candidate.distance is not None and current.distance is not None
    assert candidate.distance < 0.8 * current.distance
    whole = Bench(world, Alignment(world.bundle, mean=0.8, amplify=0.8))
    whole.trial.advance(NORMAL, 100)
    assert (whole.trial.candidate == bench.trial.candidate).all()


def test_it_rehearses_on_one_frame_and_waits_for_more_to_judge_by(world: World) -> None:
    bench = Bench(world, Alignment(world.bundle), held=1)
    for _ in range(5):
        assert not bench.trial.advance(NORMAL, 100)
    assert bench.passes == 8 and bench.trial.outcomes is None  # five to find it, three of one frame
    bench.see(2)
    assert bench.trial.advance(NORMAL, 100) and bench.passes == 12


def test_a_strategy_that_proposes_nothing_costs_nothing(world: World) -> None:
    bench = Bench(world, NoStrategy(world.bundle))
    assert bench.trial.advance(NORMAL, 3) and bench.trial.outcomes is None
    assert bench.passes == 0 and bench.trial.candidate is IDENTITY


def test_a_suspicion_that_passes_is_no_attempt(world: World) -> None:
    """One frame in coloured light: nothing is declared, judged or promoted."""
    perception = Perception(world.bundle, threads=1)
    learner = Learner(world.bundle, probe=probe_of(perception))
    decisions = []
    for index in range(60):
        image = scene(1000 + index)
        image = (image * np.array([1, 0.6, 0.5])).astype(np.uint8) if index == 30 else image
        frame = Frame(image, index, "")
        decisions.append(learner.observe(frame, perception(frame)))
    suspected = [d.drift.suspected for d in decisions if d.drift is not None]
    assert any(suspected[30:]) and not suspected[-1]
    assert [d.event for d in decisions if d.event] == []
    assert not [r for r in learner.guard.log.recent if r["kind"] == "judge"]
    assert learner._course._trial is None


def test_frames_from_before_the_suspicion_are_not_judged_by(world: World) -> None:
    perception = Perception(world.bundle, threads=1)
    through, probed = probe_of(perception), set()

    def probe(frame: Frame, adapter: np.ndarray) -> Result:
        probed.add(frame.stamp_ns)
        return through(frame, adapter)

    learner = Learner(world.bundle, probe=probe)
    for index in range(60):
        if index == 20:
            probed.clear()  # of suspicions that passed
        image = scene(1000 + index)
        image = (image * LIGHT).astype(np.uint8) if index >= 20 else image
        frame = Frame(image, index, "")
        decision = learner.observe(frame, perception(frame))
        if decision.event == "promoted":
            break
    assert decision.event == "promoted" and min(probed) >= 20
