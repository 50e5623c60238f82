"""How far the world has moved from the training domain, and since when.

Judged by the first adapter point alone, whose statistics no adapter changes: so the answer is the
same whether or not a correction is active.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from edge_runtime.adaptation.changes import Cusum
from edge_runtime.adaptation.divergence import divergence
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.source import WINDOW, SourceModel, pooled, source_thresholds
from edge_runtime.errors import InputError

_MOST = 1.6  # of log(score / threshold): a frame at five times the threshold or further counts so
_LIMIT = 2 * _MOST  # of the cumulative sum of that: two frames are no shift, three far ones are
_JUMP = 1.5  # in log score over threshold, between frames of home and of elsewhere
_MOVED = 1.0  # of that sum: what comes back from beyond was a change of scene
_RETURN = 0.0  # slack on the way back, in units of log(score / threshold)


@dataclass(frozen=True)
class Drift:
    """What the monitor makes of one frame.

    Attributes:
        score: Distance of the window's first-point statistics from those of source windows; see
            `SourceModel.distance`.
        state: "shifted" once the statistics have moved and stayed.
        since: Frames that this state has lasted.
        event: "shift" on the frame that declares one, "return" on the one that declares its end,
            "scene change" where the statistics moved and came back by themselves.
        mean: float32 [C0], running mean of the first point's channels over the window.
        var: float32 [C0], likewise their variance.
        suspected: Whether a shift is declared or may be about to be.
        compare: Computes `per_point`, which few ask for and costs more than all of the above.
    """

    score: float
    state: Literal["normal", "shifted"]
    since: int
    event: Literal["shift", "return", "scene change"] | None = None
    mean: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    var: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    suspected: bool = False
    compare: Callable[[], dict[str, float]] = dict

    @property
    def per_point(self) -> dict[str, float]:
        """Mean divergence from the source per channel of every point; see `divergence`.

        Points after the first see the adapter in use: theirs is what it has left uncorrected.
        """
        return self.compare()

    @property
    def signature(self) -> np.ndarray:
        """float32 [2 C0]: the first point's running mean and variance, by which places are told."""
        return np.concatenate([self.mean, self.var])


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
        self.source = SourceModel(reference, window)
        usual = source_thresholds(reference, window)
        self.threshold = float(usual[-1]) if threshold is None else threshold
        if not self.threshold > 0:
            raise InputError(f"threshold is {self.threshold}, expected above 0")
        self._thresholds = self.threshold * np.maximum(usual / usual[-1], 1.0)
        self.reset()

    def reset(self) -> None:
        """Start anew, in the normal state."""
        self._frames: deque[np.ndarray] = deque(maxlen=self.window)
        self._leave, self._return = Cusum(0.0, _LIMIT, _MOST), Cusum(_RETURN, _LIMIT, _MOST)
        self._excess: float | None = None
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
        newest = np.asarray(statistics, np.float32)
        self._begin_anew(newest)
        self._frames.append(newest)
        frames = np.stack(self._frames)
        mean, var = pooled(*self.reference.first_of(frames))
        score = self._distance(mean, var)
        self._excess = self._above(score, len(self._frames))
        event = self._judge(self._excess)
        suspected = self._moved or self._state == "shifted"
        compare = partial(_per_point, self.reference, frames)
        return Drift(score, self._state, self._since, event, mean, var, suspected, compare)

    def usual(self, statistics: np.ndarray) -> bool:
        """Whether a frame by itself is one of the training domain, and nothing was odd lately."""
        return self._state == "normal" and self._leave.sum == 0 and self._alone(statistics) <= 0

    def _alone(self, newest: np.ndarray) -> float:
        """Log score of one frame, above the threshold of one."""
        return self._above(self._distance(*self.reference.first_of(newest)), 1)

    def _distance(self, mean: np.ndarray, var: np.ndarray) -> float:
        return self.source.distance(self.source.features_of(mean, var))

    def _above(self, score: float, frames: int) -> float:
        """Log score of a window of so many frames, above its threshold."""
        return math.log(max(score, 1e-6) / self._thresholds[frames - 1])

    def _begin_anew(self, newest: np.ndarray) -> None:
        """Empty the window where a frame is of home and those in it are far away, or likewise.

        Pooled with them it would tell of neither: a change would be seen late, a single frame that
        is out of the ordinary for as long as the window holds it.
        """
        if self._excess is None:
            return
        alone = self._alone(newest)
        if (alone > 0) != (self._excess > 0) and abs(alone - self._excess) > _JUMP:
            self._frames.clear()

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


def _per_point(reference: Reference, frames: np.ndarray) -> dict[str, float]:
    """See `Drift.per_point`; of statistics [frames, A]."""
    mean, var = pooled(*reference.split(frames))
    each = divergence(mean, var, reference.mean, reference.var)
    return {name: float(each[part].mean()) for name, part in reference.slices.items()}
