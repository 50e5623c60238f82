"""Is one model better than another? Paired resampling over images, seeds, and both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from distill.evaluation.scores import Scores
from edge_runtime.errors import InputError

_LEVEL = 0.95
_CHUNK = 500  # draws computed at once
_ALL_FLIPS = 12  # up to so many seeds every pattern of signs is tried


@dataclass(frozen=True)
class Evidence:
    """One test of a gain: interval, two-sided p values, standardised effect; None if undefined.

    Attributes:
        low, high: 95% interval of the gain.
        p_bootstrap: twice the smaller share of draws on one side of no gain.
        p_permutation: of exchanging A and B at random.
        p_t: paired t-test.
        effect: Cohen's d of the paired differences (d_z): their mean over their deviation.
    """

    low: float | None = None
    high: float | None = None
    p_bootstrap: float | None = None
    p_permutation: float | None = None
    p_t: float | None = None
    effect: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Gain of B over A in one metric.

    Attributes:
        a, b: the metric by seed.
        images: these trainings, other images.
        seeds: other trainings, these images; undefined with one seed.
        both: other trainings and other images; undefined with one seed.
    """

    a: list[float]
    b: list[float]
    gain: float
    images: Evidence
    seeds: Evidence
    both: Evidence


def compare(
    a: Sequence[Scores], b: Sequence[Scores], resamples: int = 5000, seed: int = 0
) -> Comparison:
    """Paired tests of B against A.

    Over images: the paired bootstrap (Efron & Tibshirani 1993, chapter 16) and a permutation test
    that exchanges A and B on whole images, in all seeds at once. Over seeds: exchange of A and B
    on whole seeds (all patterns, up to 12 seeds) and the paired t-test. Over both: rows and
    columns are drawn independently (the pigeonhole bootstrap, Owen 2007).

    Args:
        a: per seed the results of model A.
        b: the same of model B: as many seeds, in the same order, on the same images.
        resamples: draws of images, and exchanges.

    Raises:
        InputError: the two do not pair up, or the metric is undefined.
    """
    if not a or len(a) != len(b):
        raise InputError(f"{len(a)} seeds of A and {len(b)} of B; a paired test needs as many")
    images = a[0].images
    if any(s.images != images for s in [*a, *b]) or images < 2:
        raise InputError(
            "a paired comparison needs the same images on both sides, two at least; found "
            f"{[s.images for s in a]} and {[s.images for s in b]}"
        )
    whole = np.ones((1, images))
    first = [float(s.value(whole)[0]) for s in a]
    second = [float(s.value(whole)[0]) for s in b]
    if not np.isfinite([*first, *second]).all():
        raise InputError("the metric is undefined: nothing occurred to judge")
    differences = np.array(second) - np.array(first)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    drawn = np.array([_gains(x, y, counts) for x, y in zip(a, b, strict=True)])  # [S, R]
    gain = float(differences.mean())
    return Comparison(
        first,
        second,
        gain,
        _over_images(a, b, drawn.mean(0), gain, rng, resamples),
        _over_seeds(differences, rng, resamples),
        _over_both(drawn, rng),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p values of several comparisons, corrected (Holm 1979), in the order given."""
    order = np.argsort(values)
    adjusted = np.empty(len(values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(values) - rank)))
        adjusted[index] = largest
    return [float(v) for v in adjusted]


def _gains(a: Scores, b: Scores, weights: np.ndarray) -> np.ndarray:
    parts = [weights[i : i + _CHUNK] for i in range(0, len(weights), _CHUNK)]
    return np.concatenate([b.value(w) - a.value(w) for w in parts])


def _over_images(
    a: Sequence[Scores],
    b: Sequence[Scores],
    drawn: np.ndarray,
    gain: float,
    rng: np.random.Generator,
    resamples: int,
) -> Evidence:
    low, high, p = _bootstrap(drawn)
    images = a[0].images
    exchanged = rng.integers(0, 2, (resamples, images))
    to_a = np.concatenate([1 - exchanged, exchanged], axis=1)
    to_b = np.concatenate([exchanged, 1 - exchanged], axis=1)
    permuted = []
    for x, y in zip(a, b, strict=True):
        pool = x.beside(y)
        chunks = [slice(i, i + _CHUNK) for i in range(0, resamples, _CHUNK)]
        permuted.append(np.concatenate([pool.value(to_b[c]) - pool.value(to_a[c]) for c in chunks]))
    return Evidence(
        low, high, p, _at_least(np.mean(permuted, 0), gain), effect=_image_effect(a, b, gain)
    )


def _image_effect(a: Sequence[Scores], b: Sequence[Scores], gain: float) -> float | None:
    """d_z over images from jackknife pseudo-values (Efron & Tibshirani 1993, chapter 11).

    For accuracy a pseudo-value is the image's own difference; for mIoU and average precision,
    which are no means over images, it is what the image adds.
    """
    images = a[0].images
    without = 1.0 - np.eye(images)
    left = np.mean([_gains(x, y, without) for x, y in zip(a, b, strict=True)], axis=0)
    return _standardised(images * gain - (images - 1) * left)


def _over_seeds(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> Evidence:
    count = len(differences)
    if count < 2:
        return Evidence()
    if count <= _ALL_FLIPS:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        permuted = (signs * differences).mean(1)
        tie = 1e-12 + 1e-9 * np.abs(differences).max()
        p = float((np.abs(permuted) >= abs(differences.mean()) - tie).mean())
    else:
        signs = rng.choice([-1, 1], (resamples, count))
        p = _at_least((signs * differences).mean(1), float(differences.mean()))
    if np.ptp(differences) == 0:
        return Evidence(p_permutation=p)
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(_LEVEL)
    return Evidence(
        float(low),
        float(high),
        p_permutation=p,
        p_t=float(test.pvalue),
        effect=_standardised(differences),
    )


def _over_both(drawn: np.ndarray, rng: np.random.Generator) -> Evidence:
    seeds, resamples = drawn.shape
    if seeds < 2:
        return Evidence()
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    low, high, p = _bootstrap((counts * drawn.T).sum(1) / seeds)
    return Evidence(low, high, p)


def _bootstrap(drawn: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Percentile interval and two-sided p, over the draws in which the metric is defined."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None, None, None
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # Davison & Hinkley 1997, section 4.2: counting the sample itself keeps p above zero.
    sides = (1 + (drawn <= 0).sum(), 1 + (drawn >= 0).sum())
    return float(low), float(high), min(1.0, 2 * float(min(sides)) / (1 + len(drawn)))


def _at_least(permuted: np.ndarray, gain: float) -> float:
    permuted = permuted[np.isfinite(permuted)]
    extreme = (np.abs(permuted) >= abs(gain) - 1e-12).sum()
    return float(1 + extreme) / (1 + len(permuted))


def _standardised(differences: np.ndarray) -> float | None:
    spread = float(np.std(differences, ddof=1))
    return float(differences.mean()) / spread if spread > 0 and np.isfinite(spread) else None
