"""Pictures of what an adapter changed: the same frames as trained and adapted."""

from __future__ import annotations

import numpy as np

from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.trial import probe_of
from edge_runtime.bundle import identity_adapter
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.manifest import ClassSpec
from edge_runtime.perception import Perception
from edge_runtime.prediction import Overlay


class Album:
    """Collects a few frames of a stream while it is adapted, each perceived both ways.

    Args:
        stream: Watched through its `seen`.
        most: Pictures to keep.
        apart: Adapted frames between two pictures.

    Attributes:
        pictures: (frame id, frame, drawn as trained, drawn as adapted), uint8 [H, W, 3] RGB.
        note: Why there are none, if so.
    """

    def __init__(self, stream: Adapting, most: int = 4, apart: int = 20) -> None:
        self.pictures: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
        self.note = "No adapter was in use."
        self._stream, self._most, self._apart = stream, most, apart
        self._adapted = 0
        perception = stream.perception
        self._probe = probe_of(perception)
        self._identity = identity_adapter(perception.manifest)
        try:
            self._overlay = Overlay(
                _classes(perception, "detection"), _classes(perception, "segmentation")
            )
        except InputError as error:
            self.note = str(error)
            return
        stream.seen = self._seen

    def _seen(self, frame: Frame, result: Result) -> None:
        if not self._stream.in_use or len(self.pictures) >= self._most:
            return
        self._adapted += 1
        if self._adapted % self._apart:
            return
        drawn = [self._overlay.draw(frame.image, r) for r in (self._trained(frame), result)]
        self.pictures.append((frame.frame_id, frame.image, drawn[0], drawn[1]))
        self.note = ""

    def _trained(self, frame: Frame) -> Result:
        return self._probe(frame, self._identity)


def _classes(perception: Perception, task: str) -> list[ClassSpec]:
    return perception.classes(task) if task in perception.tasks else []
