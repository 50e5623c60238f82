"""Views of a frame whose outputs correspond to the whole frame's cell by cell.

A view is a crop on the grid of the coarsest stride, perhaps mirrored. Every output of a network on
the view then has exactly one counterpart among its outputs on the whole frame, at every stride, so
that teacher and student are compared without any interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from edge_runtime.adaptation.network import Outputs

CELL = 32  # pixels, the coarsest stride
_T = TypeVar("_T", Tensor, np.ndarray)


@dataclass(frozen=True, slots=True)
class View:
    """A crop in cells of 32 pixels: place, size, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int], share: float) -> View:
        """A random view.

        Args:
            rng: Source of randomness.
            size: (height, width) of the frame in pixels.
            share: Least share of each side that the crop keeps, 0 to 1.
        """
        rows, columns = size[0] // CELL, size[1] // CELL
        height, width = max(1, round(rows * share)), max(1, round(columns * share))
        top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
        return cls(int(top), int(left), height, width, bool(rng.random() < 0.5))

    def of_map(self, values: _T, stride: int) -> _T:
        """The view's part of a map [..., H / stride, W / stride]."""
        step = CELL // stride
        rows = slice(self.top * step, (self.top + self.height) * step)
        columns = slice(self.left * step, (self.left + self.width) * step)
        part = values[..., rows, columns]
        if not self.mirrored:
            return part
        if isinstance(part, np.ndarray):
            return part[..., ::-1]
        return part.flip(-1)

    def of_image(self, image: np.ndarray) -> np.ndarray:
        """The view's part of an image [H, W, 3]."""
        return np.moveaxis(self.of_map(np.moveaxis(image, -1, 0), 1), 0, -1)

    def of_outputs(self, outputs: Outputs) -> Outputs:
        """The view's part of a network's outputs on whole frames."""

        def levels(maps: list[Tensor] | None, sides: bool) -> list[Tensor] | None:
            if maps is None:
                return None
            parts = [self.of_map(m, 8 * 2**i) for i, m in enumerate(maps)]
            return [_swap_sides(p) for p in parts] if sides and self.mirrored else parts

        segmentation = outputs.segmentation
        return Outputs(
            self.of_map(outputs.features, 8),
            None if segmentation is None else self.of_map(segmentation, 4),
            levels(outputs.scores, sides=False),
            levels(outputs.boxes, sides=True),
        )


def whole(size: tuple[int, int], mirrored: bool = False) -> View:
    """The view of a whole frame of (height, width) pixels."""
    return View(0, 0, size[0] // CELL, size[1] // CELL, mirrored)


def _swap_sides(distances: Tensor) -> Tensor:
    """Left and right change places in a mirrored frame."""
    return distances[:, [2, 1, 0, 3]]


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How strongly a student's view differs in looks from the teacher's.

    Attributes:
        light: Standard deviation of log brightness, log gamma and log contrast.
        colour: Standard deviation of the log gain of each colour.
        blur: Greatest standard deviation of a Gaussian blur, in pixels.
        noise: Greatest standard deviation of added noise, in grey levels.
        masked: Share of cells that are hidden, as in masked image consistency (Hoyer et al.,
            CVPR 2023, section 3.1).
        often: Share of views that are blurred, and so noisy, and masked, each by itself: a student
            that never saw a clean view would not do well on clean frames.
    """

    light: float = 0.1
    colour: float = 0.03
    blur: float = 0.7
    noise: float = 4.0
    masked: float = 0.3
    often: float = 0.1

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Disturb an image [H, W, 3] with values 0 to 255; returns float32 of the same size."""
        x = np.ascontiguousarray(image, np.float32) / 255
        brightness, gamma, contrast = np.exp(rng.normal(0, self.light, 3))
        x = np.clip(x, 0, 1) ** gamma * brightness
        mean = x.mean()
        x = (x - mean) * contrast + mean
        x = x * np.exp(rng.normal(0, self.colour, 3)).astype(np.float32) * 255
        if rng.random() < self.often and (sigma := rng.uniform(0, self.blur)) > 0.1:
            x = cv2.GaussianBlur(x, (0, 0), sigma)
        if rng.random() < self.often:
            x += rng.normal(0, rng.uniform(0, self.noise), x.shape)
        if rng.random() < self.often:
            rows, columns = x.shape[0] // CELL, x.shape[1] // CELL
            hidden = rng.random((rows, columns)) < self.masked
            full = hidden.repeat(CELL, 0).repeat(CELL, 1)
            x[: full.shape[0], : full.shape[1]][full] = x.mean((0, 1))
        return np.clip(x, 0, 255).astype(np.float32)


def stack(images: list[np.ndarray]) -> Tensor:
    """Images [H, W, 3] as one float32 batch [B, H, W, 3]."""
    return torch.from_numpy(np.stack([np.ascontiguousarray(i, np.float32) for i in images]))
