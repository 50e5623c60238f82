"""A robot that drives through a world of colours, whatever its weather."""

from __future__ import annotations

from typing import Any

from colours import World, scene

from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.shifts import ShiftStream, parse_shifts
from edge_runtime.adaptation.trial import probe_of
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

CAST = "cast:0.6"


class Robot:
    """Perception and learner in a loop, and how many pixels it got right."""

    def __init__(self, world: World, mode: str = "on", **given: Any) -> None:
        self.perception = Perception(world.bundle, threads=1)
        given = {"mean": 0.8, "amplify": 0.8, **given}
        self.learner = Learner(world.bundle, mode=mode, probe=probe_of(self.perception), **given)
        self.stream = Adapting(self.perception, self.learner)
        self.count = 0

    def drive(self, frames: int, shift: str | None = None) -> list[float]:
        """Share of right pixels of each frame of a drive through new scenes."""
        right = []
        drawn = None if shift is None else ShiftStream(parse_shifts(shift))
        for index in range(frames):
            clean = scene(1000 + self.count + index)
            image = clean if drawn is None else drawn.image(clean, index)
            result = self.stream(Frame(image, index, str(index)))
            assert result.segmentation is not None
            right.append(float((result.segmentation.mask == clean.argmax(2)).mean()))
        self.count += frames
        return right

    @property
    def events(self) -> list[str]:
        return [what for _, what in self.stream.trace.events]
