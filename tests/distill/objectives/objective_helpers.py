"""Small trunks, and checks that every masked or pretext method must pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.encoders import Encoder, EncoderSpec
from distill.objectives.protocol import Objective

CONVOLUTIONAL = EncoderSpec(
    "resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "output_stride": 8}
)
VIT = EncoderSpec(
    "vit_tiny_patch16_224",
    {"img_size": 32, "patch_size": 4, "depth": 2, "embed_dim": 32, "num_heads": 2},
)


def build(
    cls: type[Objective], spec: EncoderSpec, options: dict[str, Any] | None = None
) -> Objective:
    """An objective with the same weights at every call."""
    torch.manual_seed(0)
    return cls(Encoder(spec), cls.Options(**(options or {})))


def pictures(count: int = 8, side: int = 48) -> Tensor:
    """Images uint8 [N, 3, side, side] of coloured shapes on a gradient, each another."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    images = []
    for _ in range(count):
        u = torch.rand(9, generator=generator)
        image = u[:3, None, None] * y + (1 - u[:3, None, None]) * x * 0.5
        disc = (x - u[3]) ** 2 + (y - u[4]) ** 2 < 0.06
        image = torch.where(disc, u[5:8, None, None], image)
        images.append((image * 255).to(torch.uint8))
    return torch.stack(images)


def views_of(objective: Objective, size: tuple[int, int] = (32, 32)) -> list[Tensor]:
    """A collated batch of views of ``pictures``."""
    torch.manual_seed(0)
    view = type(objective).views(objective.options, size, objective.encoder)
    items = [view(image) for image in pictures()]
    return [torch.stack(list(part)) for part in zip(*items, strict=True)]


def falls(objective: Objective, batch: list[Tensor], to: float, steps: int = 30) -> None:
    """The loss of one batch falls to a share of what it was, and the trunk has learnt, too."""
    optimiser = torch.optim.AdamW(objective.groups(0.0), lr=3e-3)
    before = [p.detach().clone() for p in objective.encoder.parameters()]
    losses = []
    for step in range(steps):
        torch.manual_seed(0)
        objective.begin_step(step / steps)
        loss = objective(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.end_step((step + 1) / steps)
        losses.append(float(loss.detach()))
    assert losses[-1] < to * losses[0], losses
    after = objective.encoder.parameters()
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def round_trip(objective: Objective, batch: list[Tensor]) -> None:
    """A second objective that is given the state computes the same loss."""
    other = type(objective)(Encoder(objective.encoder.spec), objective.options)
    losses = []
    for model in (objective, other):
        if model is other:
            other.load_state_dict(objective.state_dict())
        model.eval()
        model.begin_step(0.5)
        torch.manual_seed(0)
        losses.append(model(batch)["loss"])
    assert torch.equal(*losses)
