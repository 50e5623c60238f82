"""Quick quality figures while training: a linear probe of features and mIoU of a head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data.views import resize_image
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.evaluation import confusion, miou


def probe_frames(
    dataset: Dataset, size: tuple[int, int], limit: int = 40
) -> list[tuple[Tensor, np.ndarray]]:
    """Evenly spread frames at network size with their masks at label size."""
    chosen = np.unique(np.linspace(0, len(dataset.samples) - 1, limit).astype(int))
    frames = []
    for i in chosen:
        frame = dataset.read(int(i))
        if frame.mask is not None:
            frames.append((torch.from_numpy(resize_image(frame.image, size))[None], frame.mask))
    return frames


@torch.no_grad()
def head_miou(student: nn.Module, frames: list[tuple[Tensor, np.ndarray]], data: Dataset) -> float:
    """mIoU of the segmentation head over ``frames``."""
    classes = data.segmentation_classes or []
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    student.eval()
    device = next(student.parameters()).device
    for image, mask in frames:
        logits = student(image.to(device))["segmentation"]
        up = F.interpolate(logits.float(), size=mask.shape, mode="bilinear", align_corners=False)
        matrix += confusion(up.argmax(1)[0].cpu().numpy(), mask, len(classes), data.ignore_index)
    return float(miou(matrix))


@torch.no_grad()
def linear_miou(
    dense: Callable[[Tensor], Tensor],
    frames: list[tuple[Tensor, np.ndarray]],
    data: Dataset,
) -> float:
    """mIoU of a ridge-regression classifier on frozen dense features.

    Fitted on every other frame and judged on the rest, on the grid of the features.

    Args:
        dense: features [1, C, h, w] of an image, uint8 [1, H, W, 3].
        frames: images and masks, of `probe_frames`.
        data: what they are from.

    Raises:
        InputError: fewer than two frames with a mask.
    """
    if len(frames) < 2:
        raise InputError(
            f"{data.source}: {len(frames)} frames with a mask, the dense probe needs two or more"
        )
    classes = len(data.segmentation_classes or [])
    ignore = -1 if data.ignore_index is None else data.ignore_index
    maps = []
    for image, mask in frames:
        found = dense(image).float().cpu()
        small = F.interpolate(
            torch.from_numpy(mask)[None, None].float(), size=found.shape[-2:], mode="nearest"
        )
        maps.append((found[0].flatten(1).T, small.flatten().long()))
    x = torch.cat([m[0] for m in maps[::2]])
    y = torch.cat([m[1] for m in maps[::2]])
    valid = (y != ignore) & (y < classes)
    x, y = x[valid], y[valid]
    mean, std = x.mean(0), x.std(0) + 1e-6

    def design(features: Tensor) -> Tensor:
        z = (features - mean) / std
        return torch.cat([z, torch.ones(len(z), 1)], 1).double()

    a = design(x)
    target = F.one_hot(y, classes).double()
    gram = a.T @ a + 1e-3 * len(a) * torch.eye(a.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, a.T @ target)
    matrix = np.zeros((classes, classes), np.int64)
    for features, label in maps[1::2]:
        found = (design(features) @ solution).argmax(1)
        matrix += confusion(found.numpy(), label.numpy(), classes, data.ignore_index)
    return float(miou(matrix))
