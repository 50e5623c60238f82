"""Views by OpenCV have the distributions of torchvision's transforms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from distill.data import augment

HEIGHT, WIDTH = 90, 160


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth colours and some texture, uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 9, 3), np.uint8)
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-12, 13, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.05, 0.4)])
def test_crops_are_drawn_as_random_resized_crop_draws_them(scale):
    np.random.seed(0)
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(32, scale=scale)
    blank = torch.zeros(3, HEIGHT, WIDTH)
    boxes = np.array([augment.crop_box(HEIGHT, WIDTH, scale) for _ in range(3000)], float)
    drawn = [theirs.make_params([blank]) for _ in range(3000)]
    expected = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in drawn], float)
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        assert ks_2samp(measure(boxes), measure(expected)).pvalue > 0.001


@pytest.mark.parametrize(
    ("ours", "theirs", "factors", "levels"),
    [
        ("_brightness", reference.adjust_brightness, (0.4, 1.0, 1.6), 1.0),
        ("_contrast", reference.adjust_contrast, (0.4, 1.0, 1.6), 1.5),
        ("_saturation", reference.adjust_saturation, (0.0, 1.0, 1.8), 1.5),
        ("_hue", reference.adjust_hue, (-0.3, 0.0, 0.1), 3.0),
    ],
)
def test_colours_change_as_torchvision_changes_them(picture, ours, theirs, factors, levels):
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    for factor in factors:
        found = getattr(augment, ours)(picture, factor).astype(int)
        expected = theirs(tensor, factor).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - expected).mean() <= levels


def test_a_view_is_normalised_and_drawn_from_the_generator(picture):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = augment.RandomView((90, 160), (1.0, 1.0), (0, 0, 0, 0), 0.0, 0.0, 0.0, mean, std)
    np.random.seed(0)
    view = plain(np.full_like(picture, 128))
    expected = (128 / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(view.mean(dim=(1, 2)), expected, rtol=1e-4, atol=1e-4)
    drawing = augment.RandomView(
        (32, 32), (0.2, 1.0), (0.4, 0.4, 0.2, 0.1), 0.2, 0.5, 0.2, mean, std
    )

    def draw(seed: int) -> torch.Tensor:
        np.random.seed(seed)
        return drawing(picture)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
