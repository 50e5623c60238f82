"""The augmentations of two-view methods by OpenCV on uint8 pixels, which is where time goes.

The distributions are those of torchvision's transforms, which the papers were trained with; a test
holds them to it. Randomness comes from numpy's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

_LEVELS = np.arange(256, dtype=np.float32)
_INVERTED = np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS).astype(np.uint8)
_HUE_STEPS = 256  # of the full circle in OpenCV's 8-bit HSV_FULL
_RATIO = (3 / 4, 4 / 3)


def crop_box(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """A random x, y, width, height (Szegedy et al. 2015, section 6; RandomResizedCrop).

    ``scale`` is the share of the area, the aspect is log-uniform in 3/4 to 4/3. Where ten draws do
    not fit, as in a very long image, the middle of the nearest aspect is taken.
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(10):
        area = height * width * np.random.uniform(*scale)
        ratio = math.exp(np.random.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
            return x, y, w, h
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``image`` at ``size`` (H, W): averaged where it shrinks, bilinear where it grows."""
    shrinks = image.shape[0] * image.shape[1] > size[0] * size[1]
    return cv2.resize(
        image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def _scaled(image: np.ndarray, factor: float, pivot: float = 0.0) -> np.ndarray:
    table = np.clip((_LEVELS - pivot) * factor + pivot, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _scaled(image, factor)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return _scaled(image, factor, round(float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())))


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, greyed(image), 1 - factor, 0)


def _hue(image: np.ndarray, shift: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(shift * _HUE_STEPS) % _HUE_STEPS)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


_OPERATIONS = (_brightness, _contrast, _saturation, _hue)


def jittered(image: np.ndarray, ranges: Sequence[float]) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed in random order.

    Args:
        ranges: of the first three the factor is uniform in 1 - range to 1 + range, not below 0;
            hue is turned by up to a range of the circle, at most half of it.
    """
    for i in np.random.permutation(4):
        span = ranges[i]
        if not span:
            continue
        centre = 0.0 if i == 3 else 1.0
        low = -span if i == 3 else max(0.0, centre - span)
        image = _OPERATIONS[i](image, np.random.uniform(low, centre + span))
    return image


def greyed(image: np.ndarray) -> np.ndarray:
    """Grey values in three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


class RandomView:
    """An image, uint8 [H, W, 3], to a view, float32 [3, *size]: normalised, channels last.

    Crop, flip (half), colour jitter (0.8), grey, blur, solarisation, in the order of BYOL's
    appendix B.

    Args:
        size: height and width in pixels.
        scale: share of the area that a crop covers.
        jitter: ranges of brightness, contrast, saturation, hue.
        grey, blur, solarize: probabilities.
        sigma: standard deviation of the blur in pixels.
        mean, std: of pixels in 0 to 1, per channel.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        jitter: Sequence[float],
        grey: float,
        blur: float,
        solarize: float,
        mean: Sequence[float],
        std: Sequence[float],
        sigma: tuple[float, float] = (0.1, 2.0),
        jitter_probability: float = 0.8,
    ) -> None:
        self.size, self.scale, self.jitter, self.sigma = size, scale, jitter, sigma
        self.grey, self.blur, self.solarize = grey, blur, solarize
        self.jitter_probability = jitter_probability
        table = (_LEVELS[:, None] / 255 - np.asarray(mean)) / np.asarray(std)
        self.table = table.reshape(1, 256, 3).astype(np.float32)

    def __call__(self, image: np.ndarray) -> Tensor:
        """One view."""
        x, y, w, h = crop_box(image.shape[0], image.shape[1], self.scale)
        view = resized(image[y : y + h, x : x + w], self.size)
        flip, jitter, grey, blur, solarize = np.random.random(5)
        if flip < 0.5:
            view = cv2.flip(view, 1)
        if jitter < self.jitter_probability:
            view = jittered(view, self.jitter)
        if grey < self.grey:
            view = greyed(view)
        if blur < self.blur:
            view = cv2.GaussianBlur(view, (0, 0), np.random.uniform(*self.sigma))
        if solarize < self.solarize:
            view = cv2.LUT(view, _INVERTED)
        return torch.from_numpy(cv2.LUT(view, self.table)).permute(2, 0, 1)
