"""How windows of source frames differ among themselves, and how far from that another window is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from edge_runtime.adaptation.divergence import VARIANCE_FLOOR
from edge_runtime.adaptation.reference import Reference
from edge_runtime.errors import InputError

WINDOW = 10  # frames
FALSE_ALARM_RATE = 0.01  # share of windows of a source sequence that may lie above the threshold
_SHRINKAGE = 0.2  # of the covariances between features
_FEW = 64  # frames below which nothing is said about covariances
_BLOCKS = 8  # source sequences are judged against what remains without them


def pooled(mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [C] of a mixture of frames with means and variances [N, C]."""
    centre = mean.mean(0)
    return centre, var.mean(0) + np.square(mean - centre).mean(0)


class SourceModel:
    """Windows of source frames at the first adapter point, as a Gaussian.

    A window is told by each channel's mean and log deviation. The distance of another one is
    Hotelling's T-squared (Annals of Mathematical Statistics 1931) a feature: about 1 within the
    source. Scenes make many channels vary together, and that is common; blur makes few channels
    vary, in a way that scenes do not, and that is far. Covariances are shrunk towards none
    (Schaefer and Strimmer, 2005, target D), for windows are few and alike.

    Args:
        reference: With `frames`, at least 4.
        window: Frames in a window.
        chosen: Indices of the frames to use, in order; all if None.
    """

    def __init__(
        self, reference: Reference, window: int = WINDOW, chosen: np.ndarray | None = None
    ) -> None:
        if reference.frames is None or len(reference.frames) < 4:
            raise InputError(
                "the bundle has too few statistics of source frames to know drift by; export it "
                "again from a recording of at least 4 frames"
            )
        self._part = reference.first
        mean, var = self._first(reference, reference.frames)
        chosen = np.arange(len(mean)) if chosen is None else chosen
        spread = np.square(mean - mean.mean(0)).mean(0) + var.mean(0)
        self._floor = VARIANCE_FLOOR * float(np.median(spread)) + 1e-12
        width = min(window, max(len(chosen) // 4, 1))
        found = np.stack([self.features(mean[i], var[i]) for i in _windows(chosen, width)])
        self.centre = found.mean(0)
        covariance = np.cov(found.T)
        keep = 1 - _SHRINKAGE if len(chosen) >= _FEW else 0.0
        diagonal = np.diag(np.diag(covariance))
        ridge = 1e-3 * np.diag(covariance).mean() + 1e-12
        shrunk = keep * covariance + (1 - keep) * diagonal + ridge * np.eye(len(covariance))
        self._inverse = np.linalg.inv(shrunk)

    def features(self, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        """Features [2 C0] of frames with first-point means and variances [N, C0]."""
        return self.features_of(*pooled(mean, var))

    def features_of(self, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        """Features [2 C0] of means and variances [C0] that are pooled already."""
        return np.concatenate([mean, 0.5 * np.log(np.maximum(var, self._floor))])

    def distance(self, features: np.ndarray, other: np.ndarray | None = None) -> float:
        """How far a window's features are from the source's, or from those of another place."""
        apart = features - (self.centre if other is None else other)
        return float(apart @ self._inverse @ apart) / len(apart)

    def _first(self, reference: Reference, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, var = reference.split(frames)
        return mean[:, self._part].astype(np.float64), var[:, self._part].astype(np.float64)


def source_scores(reference: Reference, window: int = WINDOW) -> np.ndarray:
    """Distances of windows of source frames, each from the source without its neighbours.

    Returns:
        float64 [M], one a window.
    """
    return _scores(reference, window, [window])[0]


def source_threshold(
    reference: Reference, window: int = WINDOW, false_alarm_rate: float = FALSE_ALARM_RATE
) -> float:
    """The distance that a window of a source sequence passes with the stated probability.

    Distances are positive and skewed, so their logarithms are taken for normal; location and spread
    are the median and 1.4826 times the median absolute deviation, so that a few frames of another
    world within the source do not blind the judge.

    Args:
        reference: With `frames`.
        window: Frames in a window.
        false_alarm_rate: Share of source windows above the threshold, between 0 and 0.5.
    """
    return _quantile(source_scores(reference, window), false_alarm_rate)


def source_thresholds(
    reference: Reference, window: int = WINDOW, false_alarm_rate: float = FALSE_ALARM_RATE
) -> np.ndarray:
    """`source_threshold` of windows of one frame, of two and so on, float64 [window].

    Few frames differ more from the source's windows than many do, and that is no drift.
    """
    scores = _scores(reference, window, range(1, window + 1))
    return np.array([_quantile(found, false_alarm_rate) for found in scores])


def _scores(reference: Reference, window: int, lengths: Sequence[int]) -> list[np.ndarray]:
    whole = SourceModel(reference, window)  # says what is wrong with the frames, if anything is
    assert reference.frames is not None
    mean, var = whole._first(reference, reference.frames)
    count = len(mean)
    scores: list[list[float]] = [[] for _ in lengths]
    for block in np.array_split(np.arange(count), min(_BLOCKS, count // 2)):
        rest = SourceModel(reference, window, np.setdiff1d(np.arange(count), block))
        for length, found in zip(lengths, scores, strict=True):
            for chosen in _windows(block, min(length, len(block))):
                found.append(rest.distance(rest.features(mean[chosen], var[chosen])))
    return [np.array(found) for found in scores]


def _quantile(scores: np.ndarray, false_alarm_rate: float) -> float:
    if not 0 < false_alarm_rate < 0.5:
        raise InputError(f"false_alarm_rate is {false_alarm_rate}, expected between 0 and 0.5")
    logs = np.log(np.maximum(scores, 1e-6))
    spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    return math.exp(np.median(logs) + NormalDist().inv_cdf(1 - false_alarm_rate) * spread)


def _windows(chosen: np.ndarray, width: int) -> list[np.ndarray]:
    """Every run of `width` of the chosen frames."""
    return [chosen[i : i + width] for i in range(len(chosen) - width + 1)]
