"""Paired comparison of two models over the same images."""

from __future__ import annotations

import numpy as np
import pytest

from distill.evaluation.significance import paired_bootstrap
from edge_runtime.errors import InputError


def matrices(rng, accuracy, images=40):
    found = []
    for _ in range(images):
        right = rng.binomial(500, accuracy, 2)
        found.append([[right[0], 500 - right[0]], [500 - right[1], right[1]]])
    return np.array(found)


def test_a_real_gain_is_found_and_none_is_not():
    rng = np.random.default_rng(0)
    low = [matrices(rng, 0.70) for _ in range(3)]
    high = [matrices(rng, 0.75) for _ in range(3)]
    better = paired_bootstrap(low, high, 500)
    assert better.gain > 0.04 and better.p < 0.01 and better.low < better.gain < better.high
    assert paired_bootstrap(high, low, 500).p > 0.9
    same = paired_bootstrap(low, low, 500)
    assert same.gain == 0 and same.p == 1


def test_unpaired_runs_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="same images"):
        paired_bootstrap([matrices(rng, 0.7)], [matrices(rng, 0.7, 39)])
