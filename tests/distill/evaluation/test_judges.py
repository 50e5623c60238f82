"""k-NN and the linear probe on features whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from distill.evaluation.knn import knn_accuracy, knn_predictions
from distill.evaluation.linear import fit_linear, linear_accuracy
from edge_runtime.errors import InputError


def clouds(per_class: int, distance: float, seed: int, classes: int = 4, size: int = 8):
    """Unit Gaussians around the first axes, `distance` from the origin."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centres = torch.eye(size)[:classes] * distance
    return centres[labels] + torch.randn(len(labels), size, generator=rng), labels


def test_neighbours_vote_by_similarity():
    angles = torch.tensor([0.0, 0.5, 0.55, 0.6, 2.0])
    train = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [9], [2], [5], [1]])
    labels = torch.tensor([0, 1, 1, 1, 2])
    test = torch.tensor([[3.0, 0.3]])
    angle = math.atan2(0.3, 3.0)
    # One close neighbour outvotes three others at a low temperature only.
    for temperature, expected in ((0.07, 0), (5.0, 1)):
        weights = ((angles - angle).cos() / temperature).exp()
        votes = [float(weights[labels == c].sum()) for c in range(3)]
        assert votes.index(max(votes)) == expected
        assert knn_predictions(train, labels, test, 5, temperature).tolist() == [expected]
    assert knn_predictions(train, labels, test, 1).tolist() == [0]


def test_neighbours_need_no_more_images_than_there_are():
    x, y = clouds(3, 20.0, 0)
    assert knn_accuracy(x, y, *clouds(5, 20.0, 1), k=200) == 1.0


def test_chunks_give_what_one_product_gives(monkeypatch):
    x, y = clouds(30, 2.0, 0)
    test, _ = clouds(25, 2.0, 1)
    whole = knn_predictions(x, y, test)
    monkeypatch.setattr("distill.evaluation.knn._CHUNK", 7)
    assert torch.equal(knn_predictions(x, y, test), whole)


def test_a_vote_at_the_lowest_temperature_stays_finite():
    x, y = clouds(20, 20.0, 0)
    assert knn_accuracy(x, y, *clouds(20, 20.0, 1), temperature=1e-4) == 1.0


def test_the_probe_reaches_the_optimal_error_of_two_gaussians():
    # Equal covariances: no classifier exceeds Phi(distance / 2); here distance 2 gives 0.8413.
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(2).repeat(4000)
    x = torch.randn(8000, 5, generator=rng)
    x[:, 2] += 2.0 * y
    optimum = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    found = linear_accuracy(x[:4000], y[:4000], x[4000:], y[4000:])
    assert optimum - 0.015 < found < optimum + 0.02


def test_the_probe_does_not_care_about_scale_and_offset():
    x, y = clouds(60, 3.0, 0)
    test, test_y = clouds(60, 3.0, 1)
    scale = torch.logspace(-3, 3, 8)
    plain = fit_linear(x, y, seed=1)
    moved = fit_linear(x * scale + 40 * scale, y, seed=1)
    assert moved.strength == plain.strength
    agree = plain.logits(test).argmax(1) == moved.logits(test * scale + 40 * scale).argmax(1)
    assert agree.double().mean() > 0.99
    assert plain.accuracy(test, test_y) > 0.9


def test_the_probe_is_linear():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=rng)
    y = (x.prod(1) > 0).long()
    assert linear_accuracy(x[:1000], y[:1000], x[1000:], y[1000:]) < 0.6
    assert knn_accuracy(x[:1000], y[:1000], x[1000:], y[1000:]) > 0.9


def test_the_penalty_grows_where_features_are_mostly_noise():
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(2).repeat(100)
    noise = torch.randn(200, 400, generator=rng)
    noise[:, 0] += 1.5 * y
    clean = torch.randn(200, 2, generator=rng)
    clean[:, 0] += 6.0 * y
    assert fit_linear(noise, y).strength < 1e-1
    strong, weak = fit_linear(noise, y, strengths=[1e-4]), fit_linear(noise, y, strengths=[1e4])
    assert strong.weight.norm() < 0.1 * weak.weight.norm()
    assert fit_linear(clean, y).accuracy(clean, y) > 0.97


def test_a_class_without_training_images_is_never_predicted():
    x, y = clouds(40, 6.0, 0)
    kept = y != 1
    probe = fit_linear(x[kept], y[kept])
    found = probe.logits(x).argmax(1)
    assert set(found.tolist()) == {0, 2, 3}
    assert probe.accuracy(x[kept], y[kept]) > 0.95


def test_one_image_of_each_class_is_enough_to_start():
    x, y = clouds(1, 30.0, 0, size=4)
    assert linear_accuracy(x, y, *clouds(20, 30.0, 1, size=4)) > 0.9


def test_dead_channels_do_not_spoil_the_probe():
    x, y = clouds(40, 6.0, 0)
    x = torch.cat([x, torch.full((len(x), 3), 7.0)], 1)
    probe = fit_linear(x, y)
    assert torch.isfinite(probe.weight).all() and probe.accuracy(x, y) > 0.95


@pytest.mark.parametrize("judge", [knn_accuracy, linear_accuracy])
def test_wrong_features_are_named(judge):
    x, y = clouds(10, 5.0, 0)
    spoilt = x.clone()
    spoilt[3, 2] = float("nan")
    with pytest.raises(InputError, match="1 of 40 train features are not finite"):
        judge(spoilt, y, x, y)
    with pytest.raises(InputError, match="1 of 40 test features are not finite"):
        judge(x, y, spoilt, y)
    with pytest.raises(InputError, match="40 train features, but 39 labels"):
        judge(x, y[1:], x, y)
    with pytest.raises(InputError, match="one class"):
        judge(x, torch.zeros(40), x, y)
    with pytest.raises(InputError, match="classes count from 0"):
        judge(x, y - 1, x, y)
    with pytest.raises(InputError, match="expected .N, D."):
        judge(x[:0], y[:0], x, y)
