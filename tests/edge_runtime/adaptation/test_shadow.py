"""What the shadow judges its adapter by: frames perceived under it, though nobody uses it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from colours import IDENTITY, World, scene

from edge_runtime.adaptation.guard import Guard, GuardOptions
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.limits import Limits
from edge_runtime.frames import Frame, Result, Segmentation
from edge_runtime.perception import Perception

LIGHT = np.array([1.0, 0.8, 0.6])


class Shadow:
    """A learner in the shadow of a perception that runs as trained."""

    def __init__(self, world: World) -> None:
        self.perception, self.probed = (Perception(world.bundle, threads=1) for _ in range(2))
        guard = Guard(world.bundle, GuardOptions(limits=Limits(agreement_loss=0.3)))
        self.learner = Learner(world.bundle, mode="shadow", guard=guard, probe=self.probe)
        self.spoilt = False
        self.events: list[str | None] = []

    def probe(self, frame: Frame, adapter: np.ndarray) -> Result:
        self.probed.adapter = adapter
        result = self.probed(frame)
        assert result.segmentation is not None
        one = Segmentation(np.zeros_like(result.segmentation.mask))
        return replace(result, segmentation=one) if self.spoilt else result

    def drive(self, frames: int) -> None:
        for index in range(frames):
            image = (scene(3000 + len(self.events)) * LIGHT).astype(np.uint8)
            frame = Frame(image, index, "")
            decision = self.learner.observe(frame, self.perception(frame))
            assert (decision.adapter == IDENTITY).all() and not decision.changed
            self.events.append(decision.event)


def test_results_as_trained_are_no_alarm(world: World) -> None:
    shadow = Shadow(world)
    shadow.drive(150)
    assert shadow.events.count("promoted") == 1 and "alarm" not in shadow.events
    assert shadow.learner.adapted


def test_an_adapter_that_turns_bad_is_taken_back(world: World) -> None:
    shadow = Shadow(world)
    shadow.drive(30)
    assert shadow.learner.adapted
    shadow.spoilt = True
    shadow.drive(100)
    assert "alarm" in shadow.events and not shadow.learner.adapted


@pytest.mark.parametrize("value", [0, 255])
def test_faults_reach_the_guard(world: World, value: int) -> None:
    shadow = Shadow(world)
    shadow.drive(30)
    frame = Frame(np.full((48, 64, 3), value, np.uint8), 0, "")
    shadow.learner.observe(frame, shadow.perception(frame))
    assert shadow.learner.guard.frozen is not None
