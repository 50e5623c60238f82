"""Is one model better than another on the same images? Paired resampling over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.evaluation import class_iou


@dataclass(frozen=True)
class Comparison:
    """``gain`` of B over A in mIoU, its 95% interval and the one-sided p of no gain."""

    gain: float
    low: float
    high: float
    p: float


def _miou(matrices: np.ndarray) -> np.ndarray:
    return np.array([np.nanmean(class_iou(m)) for m in matrices])


def paired_bootstrap(
    a: list[np.ndarray], b: list[np.ndarray], resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Paired bootstrap over images (Efron & Tibshirani 1993, chapter 16) of a gain in mIoU.

    Args:
        a: per seed the confusion matrices of model A, int [N, C, C], one an image.
        b: the same of model B: as many seeds, the same images in the same order.
        resamples: draws of N images with replacement; every seed is judged on the same draw.

    Raises:
        InputError: the two do not pair up.
    """
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=False)):
        raise InputError(
            "a paired comparison needs as many seeds and the same images on both sides"
        )
    rng = np.random.default_rng(seed)
    images = len(a[0])
    counts = rng.multinomial(images, np.full(images, 1 / images), size=resamples)

    def gains(weights: np.ndarray) -> np.ndarray:
        pairs = [
            _miou(np.tensordot(weights, y, 1)) - _miou(np.tensordot(weights, x, 1))
            for x, y in zip(a, b, strict=True)
        ]
        return np.mean(pairs, axis=0)

    observed = float(gains(np.ones((1, images)))[0])
    drawn = gains(counts)
    low, high = np.quantile(drawn, [0.025, 0.975])
    # Davison & Hinkley 1997, section 4.2: counting the sample itself keeps p above zero.
    p = (1 + int((drawn <= 0).sum())) / (1 + resamples)
    return Comparison(observed, float(low), float(high), p)
