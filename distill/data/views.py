"""Seeded random views of images: what a sample looks like depends on (seed, epoch, index) only."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from edge_runtime.datasets import Dataset
from edge_runtime.geometry import Geometry


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """An independent stream per sample and epoch, so that a resumed run draws the same views."""
    return np.random.default_rng([seed, epoch, index])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of (epoch, index) from a given step on; short last batches are dropped.

    Args:
        count: samples an epoch.
        start: first step, counted over all epochs, for exact resume.
        rank: this process of ``world``; every process sees its own share of each batch.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        epochs: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.count, self.batch, self.epochs, self.seed = count, batch, epochs, seed
        self.start, self.rank, self.world = start, rank, world
        self.per_epoch = max(count // (batch * world), 1)

    def __len__(self) -> int:
        return self.per_epoch * self.epochs - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.per_epoch * self.epochs):
            epoch, within = divmod(step, self.per_epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            first = (within * self.world + self.rank) * self.batch
            # A dataset smaller than a batch is repeated to fill it.
            yield [(epoch, int(order[i % self.count])) for i in range(first, first + self.batch)]


def random_crop_box(
    rng: np.random.Generator, size: tuple[int, int], aspect: float, min_scale: float
) -> tuple[int, int, int, int]:
    """A crop x, y, w, h of an image of ``size`` (H, W) with about the target's aspect (w / h)."""
    height, width = size
    area = rng.uniform(min_scale, 1.0) * height * width
    ratio = aspect * np.exp(rng.uniform(-0.15, 0.15))
    crop_w = int(min(width, max(8, round(np.sqrt(area * ratio)))))
    crop_h = int(min(height, max(8, round(np.sqrt(area / ratio)))))
    x = int(rng.integers(0, width - crop_w + 1))
    y = int(rng.integers(0, height - crop_h + 1))
    return x, y, crop_w, crop_h


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to (H, W) exactly as the robot does."""
    return Geometry(image.shape[:2], size).to_network(image)


def random_view(
    image: np.ndarray, rng: np.random.Generator, size: tuple[int, int], min_scale: float
) -> np.ndarray:
    """A random crop, flipped half of the time, uint8 [H, W, 3]."""
    x, y, w, h = random_crop_box(rng, image.shape[:2], size[1] / size[0], min_scale)
    view = resize_image(image[y : y + h, x : x + w], size)
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def jitter_colours(
    image: np.ndarray, rng: np.random.Generator, strength: float = 1.0
) -> np.ndarray:
    """Random brightness, contrast, saturation, tint, gamma, sometimes blur; uint8.

    Every range is multiplied by `strength`: 0 leaves the image as it is.
    """
    if strength == 0:
        return image
    s = strength
    table = np.arange(256, dtype=np.float32) / 255
    table = table ** np.exp(rng.uniform(-0.4 * s, 0.4 * s))
    gain = rng.uniform(1 - 0.25 * s, 1 + 0.25 * s) * rng.uniform(1 - 0.07 * s, 1 + 0.07 * s, 3)
    contrast = rng.uniform(1 - 0.3 * s, 1 + 0.3 * s)
    tables = np.clip((table[:, None] - 0.5) * contrast + 0.5, 0, 1) * gain * 255
    out = cv2.LUT(image, np.clip(tables, 0, 255).astype(np.uint8).reshape(1, 256, 3))
    if rng.random() < 0.5:
        grey = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        keep = float(rng.uniform(1 - 0.6 * s, 1 + 0.4 * s))
        out = cv2.addWeighted(out, keep, grey, 1 - keep, 0)
    if rng.random() < 0.15:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.3, 1.2)) * s)
    return out


class UnlabelledViews(TorchDataset[dict[str, Tensor]]):
    """Views of the images of one or more datasets, joined.

    An item (epoch, index) is a dict of ``clean`` for the teacher and ``image`` for the student:
    the same view, uint8 [H, W, 3], the student's with jittered colours.
    """

    def __init__(self, datasets: list[Dataset], settings, seed: int) -> None:  # noqa: ANN001
        self.members = [(d, i) for d in datasets for i in range(len(d.samples))]
        self.settings, self.seed = settings, seed

    def __len__(self) -> int:
        return len(self.members)

    def view(self, epoch: int, index: int, size: tuple[int, int]) -> np.ndarray:
        """The geometric view of one image, uint8 [H, W, 3]."""
        dataset, i = self.members[index]
        rng = sample_generator(self.seed, epoch, index)
        return random_view(dataset.read(i).image, rng, size, self.settings.min_scale)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = item
        clean = self.view(epoch, index, self.settings.size_at(epoch))
        rng = sample_generator(self.seed + 1, epoch, index)
        image = jitter_colours(clean, rng)
        return {"clean": torch.from_numpy(clean), "image": torch.from_numpy(image)}
