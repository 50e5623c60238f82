"""A recording through perception and the learner, as on the robot, faster than real time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.learner import Decision, Learner
from edge_runtime.adaptation.shifts import ShiftStream
from edge_runtime.datasets import Dataset
from edge_runtime.evaluation import class_iou, evaluate
from edge_runtime.frames import Detections, Frame, Result
from edge_runtime.manifest import ClassSpec
from edge_runtime.perception import Perception

AGAIN = ("home", "promoted", "recalled")  # another adapter fits the frame: perceive it again


@dataclass
class Trace:
    """What happened in a stream, one entry a frame; NaN where a frame was a fault.

    Attributes:
        drift: Drift scores.
        per_point: Drift by adapter point.
        adapted: Whether an adapter was in use when the next frame came.
        events: (frame, what happened).
        perceived_ms: Time of perception.
        learned_ms: Time that the learner added, its own forward passes included.
        last: What the monitor made of the last frame that was no fault.
    """

    drift: list[float] = field(default_factory=list)
    per_point: list[dict[str, float]] = field(default_factory=list)
    adapted: list[bool] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    perceived_ms: list[float] = field(default_factory=list)
    learned_ms: list[float] = field(default_factory=list)
    last: Drift | None = None

    def add(self, decision: Decision, adapted: bool) -> None:
        """Note one frame's decision."""
        index = len(self.drift)
        drift = decision.drift
        self.last = drift or self.last
        self.drift.append(float("nan") if drift is None else drift.score)
        self.per_point.append({} if drift is None else drift.per_point)
        self.adapted.append(adapted)
        fault = decision.fault and f"fault: {decision.fault}"
        for what in (fault, decision.lens, drift and drift.event):
            if what:
                self.events.append((index, what))
        if decision.event:
            self.events.append((index, decision.event))

    def count(self, *events: str) -> int:
        """How often any of these happened."""
        return sum(what in events for _, what in self.events)


class Adapting:
    """Perception with a learner in the loop; maps a frame to a result as perception does.

    Args:
        perception: Runs the network.
        learner: Gives the adapters; None leaves the network as trained.
        shifts: Drawn over each frame before anything sees it.

    Attributes:
        trace: What happened, frame by frame.
        in_use: Whether the last frame was perceived under another adapter than the identity.
        seen: Called with the frame as it was perceived and its result, if set.
    """

    def __init__(
        self,
        perception: Perception,
        learner: Learner | None = None,
        shifts: ShiftStream | None = None,
    ) -> None:
        self.perception, self.learner, self.shifts = perception, learner, shifts
        self.trace = Trace()
        self.seen: Callable[[Frame, Result], None] | None = None
        self.in_use = False
        self._index = 0
        self._score = perception.score_threshold  # whatever the results are judged at later
        if learner is not None:
            perception.adapter = learner.adapter

    def __call__(self, frame: Frame) -> Result:
        """Perceive one frame of the stream, and learn from it."""
        if self.shifts is not None:
            frame = replace(frame, image=self.shifts.image(frame.image, self._index))
        self._index += 1
        start = perf_counter()
        if self.learner is not None:
            frame = self.learner.prepare(frame)
        self.in_use = bool(self.trace.adapted and self.trace.adapted[-1])
        prepared = perf_counter()
        result = self.perception(frame)
        perceived = perf_counter()
        if self.learner is not None:
            decision = self.learner.observe(frame, _confident(result, self._score))
            if decision.changed:
                self.perception.adapter = decision.adapter
                if decision.event in AGAIN:
                    result = self.perception(frame)
            self.trace.add(decision, self.learner.adapted)
        learned = perf_counter() - perceived + prepared - start
        self.trace.perceived_ms.append(1e3 * (perceived - prepared))
        self.trace.learned_ms.append(1e3 * learned)
        if self.seen is not None:
            self.seen(frame, result)
        return result

    @property
    def score_threshold(self) -> float:
        """That of the perception."""
        return self.perception.score_threshold

    @score_threshold.setter
    def score_threshold(self, value: float) -> None:
        self.perception.score_threshold = value

    def classes(self, task: str) -> list[ClassSpec]:
        """Those of the perception."""
        return self.perception.classes(task)


def _confident(result: Result, threshold: float) -> Result:
    """The result without the detections that only average precision asks for."""
    found = result.detections
    if found is None or (kept := found.scores >= threshold).all():
        return result
    found = Detections(found.boxes[kept], found.scores[kept], found.labels[kept])
    return replace(result, detections=found)


def judged(stream: Adapting, dataset: Dataset, progress: bool = False) -> dict[str, Any]:
    """Run the frames of a labelled dataset in their order and judge the results.

    Returns:
        As `evaluate`, and ``curve``: the mean IoU of each frame with a mask.
    """
    figures = evaluate(stream, dataset, progress=progress, per_image=True)
    matrices = figures.pop("per_image")
    ignore = dataset.ignore_index
    figures["curve"] = [float(np.nanmean(class_iou(m, ignore))) for m in matrices if m.any()]
    return figures
