"""Labelled training samples: one random crop of image, mask and boxes together."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from distill.data.views import jitter_colours, random_crop_box, resize_image, sample_generator
from distill.settings import FinetuneSettings
from distill.tasks.segmentation import IGNORED
from edge_runtime.datasets import Dataset


def crop_boxes(
    boxes: np.ndarray, labels: np.ndarray, crop: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes xyxy of a crop x, y, w, h resized to (H, W); those mostly cut away are dropped."""
    x, y, w, h = crop
    low, high = np.array([x, y, x, y]), np.array([x + w, y + h, x + w, y + h])
    inside = np.clip(boxes, low, high)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    scale = np.array([size[1] / w, size[0] / h] * 2)
    moved = (inside - low) * scale
    large = ((moved[:, 2:] - moved[:, :2]) > 2).all(axis=1)
    keep = (kept > 0.3 * np.maximum(area, 1e-6)) & large
    return moved[keep].astype(np.float32), labels[keep]


class LabelledViews(TorchDataset[dict[str, Any]]):
    """Items (epoch, index) -> ``image`` uint8 [H, W, 3], ``mask`` uint8 [H, W] with 255 ignored,
    ``boxes`` float32 [M, 5]: label, x1, y1, x2, y2, padded with label -1."""

    max_boxes = 64

    def __init__(self, datasets: list[Dataset], settings: FinetuneSettings) -> None:
        self.members = [(d, i) for d in datasets for i in range(len(d.samples))]
        self.settings = settings

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = item
        dataset, i = self.members[index]
        frame = dataset.read(i)
        rng = sample_generator(self.settings.seed, epoch, index)
        size = self.settings.size_at(epoch)
        crop = random_crop_box(
            rng, frame.image.shape[:2], size[1] / size[0], self.settings.min_scale
        )
        x, y, w, h = crop
        image = resize_image(frame.image[y : y + h, x : x + w], size)
        mask = np.full(size, IGNORED, np.uint8)
        if frame.mask is not None:
            part = frame.mask[y : y + h, x : x + w]
            mask = cv2.resize(part, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
            if dataset.ignore_index is not None:
                mask[mask == dataset.ignore_index] = IGNORED
        real = ~frame.crowd
        boxes, labels = crop_boxes(frame.boxes[real], frame.labels[real], crop, size)
        if rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
            boxes = boxes.copy()
            boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
        padded = np.full((self.max_boxes, 5), -1, np.float32)
        count = min(len(boxes), self.max_boxes)
        padded[:count, 0], padded[:count, 1:] = labels[:count], boxes[:count]
        image = jitter_colours(np.ascontiguousarray(image), rng, self.settings.colour)
        return {
            "image": torch.from_numpy(image),
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "boxes": torch.from_numpy(padded),
        }
