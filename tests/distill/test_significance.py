"""Paired comparison of two models over the same images and over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from distill.evaluation.scores import ClassScores, PixelScores
from distill.evaluation.significance import compare, holm
from edge_runtime.errors import InputError


def pixels(rng, accuracy, images=40):
    found = []
    for _ in range(images):
        right = rng.binomial(500, accuracy, 2)
        found.append([[right[0], 500 - right[0]], [500 - right[1], right[1]]])
    return PixelScores(np.array(found))


def test_a_real_gain_is_found_and_none_is_not():
    rng = np.random.default_rng(0)
    low = [pixels(rng, 0.70 + 0.002 * k) for k in range(3)]
    high = [pixels(rng, 0.75 + 0.002 * k) for k in range(3)]
    better = compare(low, high, 500)
    assert better.gain > 0.04
    assert better.images.low < better.gain < better.images.high
    assert better.images.p_bootstrap < 0.01 and better.images.p_permutation < 0.01
    assert better.both.p_bootstrap < 0.01 and better.seeds.p_t < 0.05
    assert better.images.effect > 1
    worse = compare(high, low, 500)
    assert worse.gain == pytest.approx(-better.gain)
    assert worse.images.p_permutation < 0.01  # two-sided
    same = compare(low, low, 500)
    assert same.gain == 0 and same.images.p_bootstrap == 1 and same.images.p_permutation == 1
    assert same.seeds.p_permutation == 1 and same.seeds.p_t is None


def test_three_seeds_alone_cannot_reach_a_twentieth():
    rng = np.random.default_rng(1)
    found = compare([pixels(rng, 0.6)] * 3, [pixels(rng, 0.8)] * 3, 200)
    assert found.seeds.p_permutation == 0.25


def test_under_no_difference_p_is_uniform():
    """The share of p values below a level is about that level, for both tests over images."""
    rng = np.random.default_rng(2)
    small = {"p_bootstrap": 0, "p_permutation": 0}
    for _ in range(150):
        a, b = (ClassScores(rng.random(80) < 0.7) for _ in range(2))
        found = compare([a], [b], 200).images
        for name in small:
            small[name] += getattr(found, name) < 0.1
    for name, count in small.items():
        assert stats.binomtest(count, 150, 0.1).pvalue > 0.001, name


def test_accuracy_agrees_with_what_is_known_in_closed_form():
    rng = np.random.default_rng(3)
    a, b = rng.random(400) < 0.6, rng.random(400) < 0.66
    found = compare([ClassScores(a)], [ClassScores(b)], 4000)
    difference = b.astype(float) - a
    standard_error = difference.std() / np.sqrt(400)
    assert found.gain == pytest.approx(difference.mean())
    assert found.images.low == pytest.approx(found.gain - 1.96 * standard_error, abs=0.006)
    assert found.images.high == pytest.approx(found.gain + 1.96 * standard_error, abs=0.006)
    assert found.images.effect == pytest.approx(difference.mean() / difference.std(ddof=1))
    discordant = int((difference != 0).sum())
    exact = stats.binomtest(int((difference > 0).sum()), discordant, 0.5).pvalue  # McNemar
    assert found.images.p_permutation == pytest.approx(exact, abs=0.03)
    assert found.seeds.low is None and found.both.p_bootstrap is None  # one seed


def test_the_t_test_over_seeds_is_scipys():
    rng = np.random.default_rng(4)
    a = [ClassScores(rng.random(100) < 0.5) for _ in range(4)]
    b = [ClassScores(rng.random(100) < 0.6) for _ in range(4)]
    found = compare(a, b, 200)
    assert found.seeds.p_t == pytest.approx(stats.ttest_rel(found.b, found.a).pvalue)


def test_unpaired_runs_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="same images"):
        compare([pixels(rng, 0.7)], [pixels(rng, 0.7, 39)])
    with pytest.raises(InputError, match="as many"):
        compare([pixels(rng, 0.7)] * 2, [pixels(rng, 0.7)])
    nothing = PixelScores(np.zeros((3, 2, 2), int))
    with pytest.raises(InputError, match="nothing occurred"):
        compare([nothing], [nothing])


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
