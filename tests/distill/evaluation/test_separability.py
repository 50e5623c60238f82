"""Overlap and aSTD of classes with known distances, and rank correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from distill.evaluation.separability import (
    distribution_overlap,
    rank_correlation,
    separability,
)
from edge_runtime.errors import InputError


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_overlap_of_two_gaussians(shift):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 100_000), rng.normal(shift, 1, 40_000)
    exact = 1 - math.erf(shift / 2 / math.sqrt(2))  # 2 Phi(-shift / 2)
    assert distribution_overlap(a, b) == pytest.approx(exact, abs=0.02)


def test_few_samples_of_one_distribution_do_not_seem_apart():
    rng = np.random.default_rng(0)
    found = [distribution_overlap(rng.normal(size=30), rng.normal(size=2000)) for _ in range(20)]
    assert np.mean(found) > 0.8  # in 100 bins 0.43


def test_overlap_of_constants():
    assert distribution_overlap(np.full(5, 2.0), np.full(3, 2.0)) == 1
    assert distribution_overlap(np.full(5, 2.0), np.full(3, 4.0)) == 0


def clouds(radius: float, spread: float = 1.0, classes: int = 5, per_class: int = 80):
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centres = torch.eye(16)[:classes] * radius
    return centres[labels] + spread * torch.randn(len(labels), 16, generator=rng), labels


def test_classes_apart_do_not_overlap_and_shuffled_labels_do():
    features, labels = clouds(30.0)
    assert separability(features, labels).overlap < 0.01
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    assert separability(features, mixed).overlap > 0.9


def test_overlap_falls_as_classes_move_apart():
    found = [separability(*clouds(radius)).overlap for radius in (0.0, 2.0, 4.0, 8.0)]
    assert found == sorted(found, reverse=True) and found[0] - found[-1] > 0.5


def test_overlap_and_astd_do_not_care_about_rotation_scale_and_offset():
    features, labels = clouds(4.0)
    turned = 50 * features @ torch.linalg.qr(torch.randn(16, 16))[0] - 70
    plain, other = separability(features, labels), separability(turned, labels)
    assert plain.overlap == pytest.approx(other.overlap, abs=0.02)
    assert plain.inter_astd == pytest.approx(other.inter_astd, abs=1e-3)


def test_astd_of_four_classes_at_the_corners_of_a_square():
    corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    labels = torch.arange(4).repeat_interleave(5)
    found = separability(corners[labels], labels)
    # From each corner two others are at distance 1 and one at 2.
    assert found.inter_astd == pytest.approx(math.sqrt(2) / 3, rel=1e-5)
    assert found.intra_astd == pytest.approx(0, abs=1e-6)
    assert found.overlap == 0


def test_a_class_with_one_member_is_left_out():
    features, labels = clouds(30.0)
    labels = labels.clone()
    labels[0] = 9
    assert separability(features, labels).overlap < 0.01
    with pytest.raises(InputError, match="two members"):
        separability(features[::80], labels[::80])


def test_more_vectors_than_are_looked_at():
    features, labels = clouds(6.0, per_class=900)
    few = separability(features[::4], labels[::4]).overlap
    assert separability(features, labels).overlap == pytest.approx(few, abs=0.03)


def test_rank_correlation_of_an_order_and_its_reverse():
    x = [1.0, 2.0, 4.0, 8.0, 9.0, 11.0]
    up, down = rank_correlation(x, [v**3 for v in x]), rank_correlation(x, [-v for v in x])
    assert (up.spearman, up.kendall, up.low, up.high) == pytest.approx((1, 1, 1, 1))
    assert (down.spearman, down.kendall) == pytest.approx((-1, -1))
    assert up.p < 0.01


def test_bootstrap_draws_are_rank_correlations_of_the_draws():
    rng = np.random.default_rng(3)
    x = rng.normal(size=15)
    y = x + rng.normal(size=15)
    found = rank_correlation(x, y, seed=5, resamples=300)
    draws = np.random.default_rng(5).integers(0, 15, (300, 15))
    expected = np.quantile([spearmanr(x[d], y[d]).statistic for d in draws], [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], expected, atol=1e-9)
    assert found.low < found.spearman < found.high


def test_correlation_of_nothing_holds_zero_in_its_interval():
    rng = np.random.default_rng(0)
    inside = [
        found.low < 0 < found.high
        for found in (rank_correlation(rng.normal(size=20), rng.normal(size=20)) for _ in range(40))
    ]
    assert sum(inside) >= 34


def test_checkpoints_that_cannot_be_ranked_are_named():
    with pytest.raises(InputError, match="four or more checkpoints"):
        rank_correlation([1, 2, 3], [1, 2, 3])
    with pytest.raises(InputError, match="the same figure"):
        rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])
    with pytest.raises(InputError, match="not finite"):
        rank_correlation([1, 2, 3, float("nan")], [1, 2, 3, 4])
