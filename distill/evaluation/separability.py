"""How far apart classes lie in feature space, and whether that follows the probe's error.

Overlap and aSTD are named after Wu et al. 2023, "Beyond Accuracy: Statistical Measures and
Benchmark for Evaluation of Representation from Self-Supervised Learning" (arXiv 2312.01118), who
measure separability and consistency on statistics of distances. The formulas are those given here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.evaluation.checks import checked, class_count
from edge_runtime.errors import InputError

_MOST = 3000  # vectors whose pairs are looked at
_RESAMPLES = 2000


def distribution_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area under the lower of two densities, 0 (apart) to 1 (the same): Inman & Bradley 1989.

    By histograms over the range of both, with as many bins as the smaller sample bears (Rice's
    rule, twice the cube root): in finer ones, few samples would seem to keep apart.

    Args:
        a: samples of one, of any number.
        b: samples of the other.
    """
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    if high <= low:
        return 1.0
    bins = max(2, int(np.ceil(2 * min(len(a), len(b)) ** (1 / 3))))
    counts = [np.histogram(x, bins, (low, high))[0] / len(x) for x in (a, b)]
    return float(np.minimum(*counts).sum())


@dataclass(frozen=True)
class Separability:
    """Statistics of cosine distances of centred features.

    Attributes:
        overlap: of the distances within a class with those to other classes, mean over classes:
            0 where the classes lie apart, 1 where they cannot be told by distance.
        inter_astd: average over classes of the standard deviation of distances to other classes:
            small where every class is equally far from all others.
        intra_astd: the same of distances within a class.
    """

    overlap: float
    inter_astd: float
    intra_astd: float


@torch.no_grad()
def separability(features: Tensor, labels: Tensor, seed: int = 0) -> Separability:
    """Class overlap and aSTD of features [N, D] with labels [N].

    Features are centred, so that what all images share does not count, and compared by cosine.
    Of more than 3000 vectors so many are drawn; classes of fewer than two members are left out.

    Raises:
        InputError: sizes that do not agree, features that are not finite, a single class.
    """
    features, labels = checked(features, labels, "the", least=4)
    class_count(labels)
    if len(features) > _MOST:
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        chosen = order[:_MOST].to(features.device)
        features, labels = features[chosen], labels[chosen]
    unit = F.normalize(features - features.mean(0), dim=1)
    overlaps, inter, intra = [], [], []
    for value in labels.unique():
        own = labels == value
        if int(own.sum()) < 2 or bool(own.all()):
            continue
        distance = 1 - unit[own] @ unit.T
        pairs = torch.triu_indices(int(own.sum()), int(own.sum()), 1)
        within = distance[:, own][pairs[0], pairs[1]].cpu().numpy()
        between = distance[:, ~own].flatten().cpu().numpy()
        overlaps.append(distribution_overlap(within, between))
        inter.append(float(between.std()))
        intra.append(float(within.std()))
    if not overlaps:
        raise InputError("no class has two members; give more labelled images")
    return Separability(*(float(np.mean(x)) for x in (overlaps, inter, intra)))


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's and Kendall's coefficient, p of no correlation, bootstrap interval of r."""

    spearman: float
    kendall: float
    p: float
    low: float
    high: float


def rank_correlation(
    figure: Sequence[float], error: Sequence[float], seed: int = 0, resamples: int = _RESAMPLES
) -> RankCorrelation:
    """Rank correlation of a figure with the probe's error over checkpoints.

    The 95% interval of Spearman's r is a percentile bootstrap over checkpoints (Efron & Tibshirani
    1993, chapter 13); p is scipy's, two-sided.

    Raises:
        InputError: fewer than four checkpoints, or a figure that is the same for all.
    """
    from scipy.stats import kendalltau, rankdata, spearmanr

    x, y = np.asarray(figure, float), np.asarray(error, float)
    if len(x) != len(y) or len(x) < 4:
        raise InputError(
            f"a rank correlation needs the same four or more checkpoints on both sides, found "
            f"{len(x)} and {len(y)}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a figure is not finite; leave that checkpoint out")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError("all checkpoints have the same figure; take some of different quality")
    found = spearmanr(x, y)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(x), (resamples, len(x)))
    a, b = (rankdata(values[draws], axis=1) for values in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    drawn = np.divide((a * b).sum(1), norm, out=np.full(resamples, np.nan), where=norm > 0)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    tau = float(kendalltau(x, y).statistic)
    return RankCorrelation(
        float(found.statistic), tau, float(found.pvalue), float(low), float(high)
    )
