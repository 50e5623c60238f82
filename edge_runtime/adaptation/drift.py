"""How far the world has moved from the training domain, and since when.

Judged by the first adapter point alone, whose statistics no adapter changes: so the answer is the
same whether or not a correction is active.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np

from edge_runtime.adaptation.changes import Cusum
from edge_runtime.adaptation.divergence import divergence
from edge_runtime.adaptation.reference import Reference
from edge_runtime.errors import InputError

WINDOW = 10  # frames
FALSE_ALARM_RATE = 1e-3  # share of windows of a source sequence that may lie above the threshold
_LIMIT = 4.0  # of the cumulative sum of log(score / threshold)
_MOST = 1.0  # a frame at e times the threshold, or further, counts so much
_MOVED = 1.0  # of that sum: what comes back from beyond was a change of scene
_RETURN = 0.0  # slack on the way back, in units of log(score / threshold)
_BLOCKS = 8  # source sequences are judged against what remains without them


@dataclass(frozen=True)
class Drift:
    """What the monitor makes of one frame.

    Attributes:
        score: Mean divergence per channel of the first point over the window; see `divergence`.
        per_point: The same for every point. Points after the first see the adapter in use: theirs
            is what it has left uncorrected.
        state: "shifted" once the statistics have moved and stayed.
        since: Frames that this state has lasted.
        event: "shift" on the frame that declares one, "return" on the one that declares its end,
            "scene change" where the statistics moved and came back by themselves.
        mean: float32 [C0], running mean of the first point's channels over the window.
        var: float32 [C0], likewise their variance.
    """

    score: float
    per_point: dict[str, float]
    state: Literal["normal", "shifted"]
    since: int
    event: Literal["shift", "return", "scene change"] | None = None
    mean: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    var: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def signature(self) -> np.ndarray:
        """float32 [2 C0]: the first point's running mean and variance, by which places are told."""
        return np.concatenate([self.mean, self.var])


def pooled(mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [C] of a mixture of frames with means and variances [N, C]."""
    centre = mean.mean(0)
    return centre, var.mean(0) + np.square(mean - centre).mean(0)


def source_scores(reference: Reference, frames: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Drift scores of windows of source frames, each against the source without its neighbours.

    Args:
        reference: Whose layout the statistics have.
        frames: float32 [N, A], N at least 4, in the order they were recorded.
        window: Frames in a window; fewer where the source has fewer.

    Returns:
        float64 [M], one score a window.
    """
    if len(frames) < 4:
        raise InputError(f"{len(frames)} source frames are too few to know drift by; 4 at least")
    mean, var = reference.split(frames)
    mean, var = mean[:, reference.first], var[:, reference.first]
    blocks = np.array_split(np.arange(len(frames)), min(_BLOCKS, len(frames) // 2))
    scores = []
    for block in blocks:
        others = np.setdiff1d(np.arange(len(frames)), block)
        home = pooled(mean[others], var[others])
        width = min(window, len(block))
        for start in range(len(block) - width + 1):
            part = block[start : start + width]
            scores.append(divergence(*pooled(mean[part], var[part]), *home).mean())
    return np.array(scores)


def source_threshold(
    reference: Reference, window: int = WINDOW, false_alarm_rate: float = FALSE_ALARM_RATE
) -> float:
    """The score that a window of a source sequence passes with the stated probability.

    Scores are positive and skewed, so their logarithms are taken for normal; its location and
    spread are the median and 1.4826 times the median absolute deviation, so that a few frames of
    another world within the source do not blind the judge.

    Args:
        reference: With `frames`.
        window: Frames in a window.
        false_alarm_rate: Share of source windows above the threshold, between 0 and 0.5.
    """
    if not 0 < false_alarm_rate < 0.5:
        raise InputError(f"false_alarm_rate is {false_alarm_rate}, expected between 0 and 0.5")
    if reference.frames is None:
        raise InputError(
            "the bundle has no statistics of source frames to calibrate drift by; export it "
            "again, or give a threshold"
        )
    logs = np.log(np.maximum(source_scores(reference, reference.frames, window), 1e-6))
    spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    return math.exp(np.median(logs) + NormalDist().inv_cdf(1 - false_alarm_rate) * spread)


class DriftMonitor:
    """Follows the statistics of a stream of frames.

    Args:
        reference: What they were in training.
        threshold: Score above which a window is unusual; from the source's frames if None.
        window: Frames whose statistics are pooled.
    """

    def __init__(
        self, reference: Reference, threshold: float | None = None, window: int = WINDOW
    ) -> None:
        if window < 1:
            raise InputError(f"window is {window} frames, expected at least 1")
        self.reference, self.window = reference, window
        self.threshold = source_threshold(reference, window) if threshold is None else threshold
        if not self.threshold > 0:
            raise InputError(f"threshold is {self.threshold}, expected above 0")
        self.reset()

    def reset(self) -> None:
        """Start anew, in the normal state."""
        self._frames: deque[np.ndarray] = deque(maxlen=self.window)
        self._leave, self._return = Cusum(0.0, _LIMIT, _MOST), Cusum(_RETURN, _LIMIT, _MOST)
        self._state: Literal["normal", "shifted"] = "normal"
        self._since = 0
        self._moved = False

    def update(self, statistics: np.ndarray) -> Drift:
        """Take one frame's statistics.

        Args:
            statistics: float32 [A] of the engine, finite.
        """
        if not np.isfinite(statistics).all():
            raise InputError("statistics are not finite; the frame is a fault, not a drift")
        self._frames.append(np.asarray(statistics, np.float32))
        mean, var = pooled(*self.reference.split(np.stack(self._frames)))
        each = divergence(mean, var, self.reference.mean, self.reference.var)
        per_point = {name: float(each[part].mean()) for name, part in self.reference.slices.items()}
        first = self.reference.first
        score = float(each[first].mean())
        event = self._judge(math.log(max(score, 1e-6) / self.threshold))
        return Drift(score, per_point, self._state, self._since, event, mean[first], var[first])

    def _judge(self, excess: float) -> Literal["shift", "return", "scene change"] | None:
        """Advance the state by one frame whose log score is `excess` above the threshold."""
        self._since += 1
        if self._state == "normal":
            if self._leave.update(excess):
                self._state, self._since = "shifted", self._leave.length
                self._return.reset()
                self._moved = False
                return "shift"
            self._moved |= self._leave.sum > _MOVED
            if self._moved and self._leave.sum == 0:
                self._moved = False
                return "scene change"
            return None
        if self._return.update(-excess):
            self._state, self._since = "normal", self._return.length
            self._leave.reset()
            return "return"
        return None
