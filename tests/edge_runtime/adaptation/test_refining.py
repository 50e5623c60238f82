"""A candidate that is no small step has to pass a trial of its own, in use and in the shadow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from colours import IDENTITY, World, scene

from edge_runtime.adaptation.alignment import Alignment
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.strategies import Refined, Refining, register_strategy
from edge_runtime.adaptation.trial import probe_of
from edge_runtime.bundle import Bundle
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

LIGHT = np.array([1.0, 0.75, 0.55])
MENDS = np.array([1.0, 1 / 0.75, 1 / 0.55, 0, 0, 0, 1, 1, 1, 0, 0, 0], np.float32)
BREAKS = np.array([0.4, 1.0, 3.0, 0, 0, 0.5, 1, 1, 1, 0, 0, 0], np.float32)


@register_strategy("offering")
class Offering(Alignment):
    """Weak alignment that offers an adapter, or the one in use, in its fifth frame of following."""

    def __init__(
        self, bundle: Bundle, offered: np.ndarray | None, merit: str | None = None
    ) -> None:
        super().__init__(bundle, mean=0.8, amplify=0.5)
        self.offered, self.merit, self.seen = offered, merit, 0
        self.taken: np.ndarray | None = None

    def refine(self, frame: Frame, adapter: np.ndarray) -> Refined | None:
        self.seen += 1
        offered = adapter if self.offered is None else self.offered
        return Refined(offered, self.merit) if self.seen == 5 else None

    def accepted(self, adapter: np.ndarray) -> None:
        self.taken = adapter

    def observe(self, *args: Any) -> np.ndarray | None:
        return super().observe(*args) if self.taken is None else self.taken


def drive(
    world: World, offered: np.ndarray | None, mode: str = "on", merit: str | None = None
) -> Any:
    """A learner in coloured light that was offered an adapter; its stream and most passes added."""
    perception = Perception(world.bundle, threads=1)
    probe, passes = probe_of(perception), []

    def counted(frame: Frame, adapter: np.ndarray) -> Any:
        passes[-1] += 1
        return probe(frame, adapter)

    learner = Learner(world.bundle, "offering", mode, probe=counted, offered=offered, merit=merit)
    stream = Adapting(perception, learner)
    for index in range(60):
        passes.append(0)
        image = (scene(5000 + index) * LIGHT).astype(np.uint8)
        stream(Frame(image, index, ""))
    return learner, stream, passes


def test_strategies_that_only_follow_are_not_asked(world: World) -> None:
    assert not isinstance(Alignment(world.bundle), Refining)
    assert isinstance(Offering(world.bundle, MENDS), Refining)


def test_a_better_adapter_is_used_and_watched(world: World) -> None:
    learner, stream, passes = drive(world, MENDS, merit="known better")
    assert stream.trace.count("refined") == 1 and stream.trace.count("alarm") == 0
    np.testing.assert_array_equal(learner.adapter, MENDS)
    np.testing.assert_array_equal(learner.guard.adapter, MENDS)
    judged = [r for r in learner.guard.log.recent if r["kind"] == "judge"]
    assert judged[-1]["promote"] and "known better" in judged[-1]["reasons"]
    assert max(passes) <= 4, "a trial spends three passes a frame, and one when it begins"


@pytest.mark.parametrize("merit", [None, "known better"])
def test_a_worse_adapter_is_refused_whatever_its_finder_says(
    world: World, merit: str | None
) -> None:
    learner, stream, _ = drive(world, BREAKS, merit=merit)
    assert stream.trace.count("not refined") == 1 and stream.trace.count("refined") == 0
    assert learner.adapted and learner.strategy.taken is None
    assert np.abs(learner.adapter - BREAKS).max() > 0.5


def test_without_merit_no_change_is_no_reason(world: World) -> None:
    """The adapter that is in use already is not taken: it gains nothing."""
    _, stream, _ = drive(world, None)
    assert stream.trace.count("not refined") == 1


def test_in_the_shadow_it_is_judged_by_results_under_the_adapters(world: World) -> None:
    learner, stream, _ = drive(world, MENDS, mode="shadow", merit="known better")
    assert (learner.adapter == IDENTITY).all()
    judged = [r for r in learner.guard.log.recent if r["kind"] == "judge"]
    assert len(judged) == 2
    assert judged[1]["numbers"]["current.movement"] > 0.05
    before = judged[0]["numbers"]["candidate.distance"]
    assert judged[1]["numbers"]["current.distance"] == pytest.approx(before, rel=0.5)
    assert stream.trace.count("refined") == 1
