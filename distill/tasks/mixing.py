"""Mixing of training samples: mixup, CutMix, Manifold Mixup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def cut_boxes(batch: int, probability: float) -> Tensor:
    """Boxes to paste, float [B, 4] as shares of height and width (y, x, height, width).

    Area 0.02 to 0.4 of the image and aspect 0.3 to 3.3, as French et al. 2020 and UniMatch; boxes
    of no size where nothing is pasted. From torch's generator.
    """
    area = torch.empty(batch).uniform_(0.02, 0.4)
    aspect = torch.empty(batch).uniform_(-1.2, 1.2).exp()
    height = (area * aspect).sqrt().clamp_max(1)
    width = (area / aspect).sqrt().clamp_max(1)
    y, x = torch.rand(batch) * (1 - height), torch.rand(batch) * (1 - width)
    keep = (torch.rand(batch) < probability).float()
    return torch.stack([y, x, height * keep, width * keep], 1)


def paste(maps: Tensor, boxes: Tensor) -> Tensor:
    """Maps [B, C, h, w] of any resolution with each one's box filled from its neighbour."""
    height, width = maps.shape[-2:]
    inside = _inside(boxes.to(maps.device), height, width)
    return torch.where(inside[:, None], maps.roll(1, 0), maps)


def pasted_share(boxes: Tensor, height: int, width: int) -> Tensor:
    """Share of each map's pixels that ``paste`` fills, float [B]."""
    return _inside(boxes, height, width).float().mean((1, 2))


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    ys = (torch.arange(height, device=boxes.device) + 0.5) / height
    xs = (torch.arange(width, device=boxes.device) + 0.5) / width
    y, x, h, w = boxes.unbind(1)
    rows = (ys >= y[:, None]) & (ys < (y + h)[:, None])
    columns = (xs >= x[:, None]) & (xs < (x + w)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def beta(alpha: float) -> float:
    """A draw of Beta(alpha, alpha) from torch's generator."""
    # torch.distributions would validate; gammas from the one generator that is seeded a step.
    first, second = torch._standard_gamma(torch.full((2,), alpha)).tolist()
    return first / max(first + second, 1e-12)


@contextmanager
def mixed_features(module: nn.Module, share: float, order: Tensor) -> Iterator[None]:
    """Within the block, what leaves ``module`` is ``share`` of itself and the rest of the sample
    at ``order`` (Manifold Mixup, Verma et al. 2019, section 2)."""

    def mix(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return share * output + (1 - share) * output[order]

    handle = module.register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()
