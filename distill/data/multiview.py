"""Views of images for self-supervised methods, drawn anew from (seed, epoch, index)."""

from __future__ import annotations

import random

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from distill.data.images import JoinedImages
from distill.encoders import Encoder
from distill.objectives.protocol import Objective, ObjectiveOptions
from distill.settings import PretrainSettings


def seed_sample(seed: int, epoch: int, index: int) -> None:
    """Seeds torch, numpy and random, whose global generators transforms draw from."""
    words = np.random.SeedSequence([seed, epoch, index]).generate_state(3)
    # torch.manual_seed would also record a traceback for GPUs, which takes longer than a view.
    torch.default_generator.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


class MultiViews(TorchDataset[list[Tensor]]):
    """Views of images by a method's transform; an item is (epoch, index).

    Args:
        rows: numbers of the images to train on, within ``images``.
    """

    def __init__(
        self,
        images: JoinedImages,
        rows: np.ndarray,
        method: type[Objective],
        options: ObjectiveOptions,
        settings: PretrainSettings,
        encoder: Encoder,
    ) -> None:
        # One image gives OpenCV's threads nothing to share; workers are what runs side by side.
        cv2.setNumThreads(0)
        self.images, self.rows, self.settings = images, rows, settings
        sizes = {settings.size_at(e) for e in range(settings.epochs)}
        self.views = {size: method.views(options, size, encoder) for size in sizes}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> list[Tensor]:
        epoch, index = item
        image = torch.from_numpy(self.images.read(int(self.rows[index])))
        seed_sample(self.settings.seed, epoch, index)
        return self.views[self.settings.size_at(epoch)](image.permute(2, 0, 1))
