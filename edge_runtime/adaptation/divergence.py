"""How far apart two sets of channel statistics are, robust against channels that hardly vary."""

from __future__ import annotations

import numpy as np

VARIANCE_FLOOR = 0.02  # of the median variance: a near-dead channel would drown all others
CAP = 2.0  # most that one channel may say


def divergence(
    mean_a: np.ndarray, var_a: np.ndarray, mean_b: np.ndarray, var_b: np.ndarray
) -> np.ndarray:
    """Symmetric divergence of Gaussians, channel by channel; take its mean for one score.

    Half the sum of both Kullback-Leibler divergences (the sum is the feature divergence of Pan et
    al., IBN-Net, ECCV 2018), ``((v_a + d^2) / v_b + (v_b + d^2) / v_a - 2) / 4`` with d the
    distance of the means. Variances below `VARIANCE_FLOOR` of the median over both sides are
    raised to it, and a channel counts `CAP` at most.

    Args:
        mean_a: float [..., C], channel means at one adapter point.
        var_a: float [..., C], their variances.
        mean_b: float [..., C], of the other side.
        var_b: float [..., C], of the other side.

    Returns:
        float64 [..., C] from 0 to `CAP`; `CAP` where a value is not finite.
    """
    mean_a, var_a, mean_b, var_b = (
        np.asarray(values, np.float64) for values in (mean_a, var_a, mean_b, var_b)
    )
    if var_a.shape != var_b.shape:
        var_a, var_b = np.broadcast_arrays(var_a, var_b)
    both = np.concatenate([var_a, var_b], axis=-1)
    if not np.isfinite(both).all():
        both = np.where(np.isfinite(both), both, 0.0)
    both.sort(axis=-1)
    middle = both.shape[-1] // 2  # an even number: the median is the mean of two
    median = both[..., middle - 1 : middle + 1].mean(axis=-1, keepdims=True)
    floor = np.maximum(VARIANCE_FLOOR * median, np.finfo(np.float32).tiny)
    with np.errstate(all="ignore"):
        a, b = np.maximum(var_a, floor), np.maximum(var_b, floor)
        squared = np.square(mean_a - mean_b)
        value = ((a + squared) / b + (b + squared) / a - 2) / 4
    # The comparison is false for what is not a number, which counts `CAP`, too.
    return np.where(value <= CAP, np.maximum(value, 0.0), CAP)
