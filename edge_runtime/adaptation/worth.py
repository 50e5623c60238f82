"""Which of many frames tells least beside the others.

A frame's worth is its distance from the nearest other one, times how rare its classes are among
all: greedy k-center selection (Sener and Savarese, "Active learning for convolutional neural
networks: a core-set approach", ICLR 2018) on a stream, balanced by class as in Chrysakis and Moens,
"Online continual learning from imbalanced data", ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_runtime.adaptation.divergence import CAP

_SMOOTHING = 0.1  # of the share of each class, in units of an even share


def least_worthy(apart: np.ndarray, shares: Sequence[Sequence[float]]) -> int:
    """Index of the frame that tells least beside the others; of equals the newest.

    Args:
        apart: float64 [N, N], distances, infinite on the diagonal.
        shares: Class shares of each frame, N lists; those of another length than the last are of
            another network, and count as neither rare nor common.
    """
    size = len(shares[-1])
    known = np.array([row if len(row) == size else [0.0] * size for row in shares])
    worth = np.minimum(apart.min(axis=1), CAP) * _rarity(known)
    return len(worth) - 1 - int(np.argmin(worth[::-1]))


def _rarity(shares: np.ndarray) -> np.ndarray:
    """How rare the classes of each frame are among all, float64 [N], about 1 on the mean.

    Args:
        shares: float64 [N, classes].
    """
    if shares.shape[1] == 0:
        return np.ones(len(shares))
    even = 1 / shares.shape[1]
    weight = even / (shares.mean(axis=0) + _SMOOTHING * even)
    return np.where(shares.any(axis=1), shares @ weight, 1.0)


def grown(apart: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Distances [N, N] with one frame more, whose distances from the others are `row` [N]."""
    size = len(row)
    larger = np.full((size + 1, size + 1), np.inf)
    larger[:size, :size] = apart
    larger[size, :size] = larger[:size, size] = row
    return larger
