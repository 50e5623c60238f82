"""Objectives, losses, settings and data order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.data.labelled import crop_boxes
from distill.data.views import EpochBatches, jitter_colours, random_view, sample_generator
from distill.objectives.features import FeatureDistillation, FeatureWeights
from distill.settings import DistillSettings, FinetuneSettings, load_settings
from distill.standardise import Standardiser, equalising_rotation
from distill.tasks.detection import DetectionLoss
from distill.tasks.segmentation import SegmentationLoss
from distill.training import warmed_average
from edge_runtime.errors import InputError


@pytest.mark.parametrize("size", [2, 7, 64, 120])
def test_the_rotation_is_orthogonal_and_equalises_any_spectrum(size):
    values = np.random.default_rng(size).exponential(1.0, size) ** 3
    rotation = equalising_rotation(values)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=1e-9)
    diagonal = np.diag(rotation @ np.diag(values) @ rotation.T)
    np.testing.assert_allclose(diagonal, values.mean(), rtol=1e-6)


def test_standardised_features_have_zero_mean_unit_variance_and_keep_angles():
    torch.manual_seed(0)
    x = torch.randn(4000, 12) @ torch.randn(12, 12) * 5 + 3
    standardiser = Standardiser.fit(x)
    y = standardiser(x.T[None, :, :, None])[0, :, :, 0].T
    torch.testing.assert_close(y.mean(0), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(y.var(0), torch.ones(12), atol=1e-2, rtol=0)
    centred = x - x.mean(0)
    ratio = y.norm(dim=1) / centred.norm(dim=1)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


def test_feature_distillation_is_least_where_the_student_matches():
    torch.manual_seed(0)
    objective = FeatureDistillation((8, 8), [(8, 8)], FeatureWeights())
    with torch.no_grad():
        objective.dense[0].weight.copy_(torch.eye(8)[:, :, None, None])
        objective.pooled[0].weight.copy_(torch.eye(8))
        for layer in (objective.dense[0], objective.pooled[0]):
            layer.bias.zero_()
    target, pooled = torch.randn(2, 8, 6, 6), torch.randn(2, 8)
    exact = objective(target, pooled, [(target, pooled)])
    other = objective(torch.randn(2, 8, 6, 6), pooled, [(target, pooled)])
    assert exact["loss"].item() < 1e-4 < other["loss"].item()
    assert {"cosine", "smooth_l1", "pooled", "relational"} <= set(exact)


def test_detection_loss_prefers_the_right_box_and_class():
    points = torch.tensor(
        [[x + 4.0, y + 4.0, 8.0] for y in range(0, 64, 8) for x in range(0, 64, 8)]
    )
    truth, label = torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([1.0])
    right = truth.expand(1, 64, 4).clone()
    inside = ((points[:, :2] > 8) & (points[:, :2] < 40)).all(1)
    logits = torch.full((1, 64, 2), -5.0)
    good = logits.clone()
    good[0, inside, 1] = 4.0
    wrong_class = logits.clone()
    wrong_class[0, inside, 0] = 4.0
    loss = DetectionLoss()
    best = loss((good, right, points), [truth], [label])
    assert best < loss((wrong_class, right, points), [truth], [label])
    assert best < loss((good, right + 12, points), [truth], [label])
    empty = loss((good, right, points), [torch.zeros(0, 4)], [torch.zeros(0)])
    assert torch.isfinite(empty)


def test_segmentation_loss_ignores_unlabelled_pixels():
    loss = SegmentationLoss(torch.tensor([0.7, 0.3]), 0.5)
    target = torch.zeros(1, 16, 16, dtype=torch.uint8)
    target[:, 8:] = 255
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 0, :4] = 9
    logits[:, 1, 4:] = 9
    assert float(loss(logits, target)) < 1e-2
    assert float(loss(logits, torch.full_like(target, 255))) == 0


def test_misspelt_settings_name_the_nearest():
    with pytest.raises(InputError, match="did you mean epochs"):
        load_settings(DistillSettings, None, ["epoch=3"])
    with pytest.raises(InputError, match="KEY=VALUE"):
        load_settings(FinetuneSettings, None, ["epochs"])
    assert load_settings(DistillSettings, None, ["terms.cosine=0.25"]).terms.cosine == 0.25


def test_batches_resume_where_they_stopped_and_split_over_ranks():
    whole = list(EpochBatches(10, 2, 3, seed=1))
    assert list(EpochBatches(10, 2, 3, seed=1, start=7)) == whole[7:]
    assert sorted(i for batch in whole[:5] for _, i in batch) == list(range(10))
    ranks = [list(EpochBatches(8, 2, 1, 0, rank=r, world=2)) for r in range(2)]
    assert sorted(i for rank in ranks for batch in rank for _, i in batch) == list(range(8))


def test_views_depend_on_seed_epoch_and_index_only():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    view = [random_view(image, sample_generator(3, 1, 5), (32, 48), 0.4) for _ in range(2)]
    np.testing.assert_array_equal(*view)
    other = random_view(image, sample_generator(3, 2, 5), (32, 48), 0.4)
    assert (view[0] != other).any() and other.shape == (32, 48, 3)
    assert jitter_colours(other, sample_generator(0, 0, 0)).shape == other.shape
    moved = [
        np.abs(jitter_colours(other, sample_generator(0, 0, 0), s).astype(int) - other).mean()
        for s in (0.0, 0.3, 1.0)
    ]
    assert moved[0] == 0 < moved[1] < moved[2]


def test_cropped_boxes_move_with_the_image_and_lost_ones_go():
    boxes = np.array([[10, 10, 30, 30], [80, 80, 90, 90]], np.float32)
    moved, labels = crop_boxes(boxes, np.array([2, 0]), (0, 0, 50, 50), (100, 100))
    np.testing.assert_allclose(moved, [[20, 20, 60, 60]])
    assert labels.tolist() == [2]


def test_a_short_runs_average_forgets_its_start():
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    for n in range(60):
        warmed_average(0.999)(averaged, current, torch.tensor(n))
    assert averaged[0].min() > 0.95
