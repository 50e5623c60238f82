"""The distance of channel statistics: its formula, and what it makes of hopeless channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_runtime.adaptation.divergence import CAP, VARIANCE_FLOOR, divergence


def kl(mean_a: float, var_a: float, mean_b: float, var_b: float) -> float:
    """Kullback-Leibler divergence of two Gaussians, from its textbook form."""
    ratio = (var_a + (mean_a - mean_b) ** 2) / var_b
    return 0.5 * (np.log(var_b / var_a) + ratio - 1)


def test_it_is_half_the_sum_of_both_kl_divergences() -> None:
    mean_a, var_a = np.array([0.0, 1.0, -2.0]), np.array([1.0, 0.5, 2.0])
    mean_b, var_b = np.array([0.3, 0.2, -1.0]), np.array([1.5, 0.7, 1.1])
    expected = [
        0.5 * (kl(a, va, b, vb) + kl(b, vb, a, va))
        for a, va, b, vb in zip(mean_a, var_a, mean_b, var_b, strict=True)
    ]
    assert divergence(mean_a, var_a, mean_b, var_b) == pytest.approx(expected)


def test_a_dead_channel_counts_no_more_than_the_floor_and_the_cap_allow() -> None:
    ones, dead = np.ones(5), np.array([1, 1, 1, 1, 1e-12])
    assert divergence(np.zeros(5), dead, np.zeros(5), dead).max() == 0
    moved = divergence(np.array([0, 0, 0, 0, 0.1]), dead, np.zeros(5), dead)
    assert moved[4] == pytest.approx(0.1**2 / (2 * VARIANCE_FLOOR))
    assert divergence(np.full(5, 100.0), ones, np.zeros(5), ones).max() == CAP


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_as_far_as_can_be(wrong: float) -> None:
    ones, zeros = np.ones(3), np.zeros(3)
    assert divergence(np.array([wrong, 0, 0]), ones, zeros, ones).tolist() == [CAP, 0, 0]
    all_wrong = divergence(np.full(3, wrong), np.full(3, wrong), zeros, ones)
    assert (all_wrong == CAP).all()


numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)
vectors = arrays(np.float32, 4, elements=numbers)


@given(vectors, vectors, vectors, vectors)
def test_it_is_symmetric_and_bounded(
    mean_a: np.ndarray, var_a: np.ndarray, mean_b: np.ndarray, var_b: np.ndarray
) -> None:
    value = divergence(mean_a, var_a, mean_b, var_b)
    assert ((value >= 0) & (value <= CAP)).all()
    assert value == pytest.approx(divergence(mean_b, var_b, mean_a, var_a))
