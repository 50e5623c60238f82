"""The methods that compare views, with heads small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from objective_helpers import pictures
from torch import Tensor

from distill.data.multiview import seed_sample
from distill.objectives.protocol import Objective

VIEWS = {"colour": 0.5, "blur": [0, 0], "solarize": [0, 0], "min_scale": 0.3}
_PROTOTYPES = {"prototypes": 24, "hidden": 32, "bottleneck": 16, "local_views": 2}
_PROTOTYPES |= {"local_size": 0.5, "momentum": 0.9}
OPTIONS: dict[str, dict[str, Any]] = {
    "barlow": {"projection": 32},
    "byol": {"hidden": 32, "projection": 16, "momentum": 0.9},
    "densecl": {"hidden": 32, "projection": 16, "queue": 40, "momentum": 0.9},
    "dino": _PROTOTYPES,
    "dinov2": _PROTOTYPES,
    "mocov3": {"hidden": 32, "projection": 16, "momentum": 0.9},
    "simsiam": {"projection": 32, "bottleneck": 8},
    "vicreg": {"expander": 32},
}
OPTIONS = {method: {**VIEWS, **options} for method, options in OPTIONS.items()}
WITH_MOMENTUM = ["byol", "densecl", "dino", "dinov2", "mocov3"]
WITH_PROTOTYPES = ["dino", "dinov2"]


def seeded_views(model: Objective, size: tuple[int, int] = (32, 32)) -> list[Tensor]:
    """A collated batch of views of ``pictures``, the same at every call."""
    view = type(model).views(model.options, size, model.encoder)
    items = []
    for i, image in enumerate(pictures()):
        seed_sample(0, 0, i)
        items.append(view(image))
    return [torch.stack(part) for part in zip(*items, strict=True)]
