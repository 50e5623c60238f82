"""Optimisers by the names that recipes use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightly.utils.lars import LARS
from torch.optim import Optimizer

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def _sgd(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=0.9)


def _lars(groups: Groups, lr: float, weight_decay: float) -> Optimizer:
    return LARS(groups, lr=lr, weight_decay=weight_decay, momentum=0.9)


OPTIMISERS: dict[str, Callable[[Groups, float, float], Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "lars": _lars,
}
