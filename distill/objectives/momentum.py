"""A momentum encoder: a slow copy that follows what is trained and gets no gradient."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from lightly.models.utils import update_momentum
from pydantic import Field
from timm.layers import DropPath
from torch import nn

from distill.objectives.protocol import Objective, ObjectiveOptions
from distill.objectives.schedules import cosine


class MomentumOptions(ObjectiveOptions):
    """How slowly the copy follows."""

    momentum: float = Field(
        0.996, ge=0, lt=1, description="at the start; rises along a cosine to 1 at the end"
    )


def momentum_copy(source: nn.Module) -> nn.Module:
    """A copy without gradient, dropout or stochastic depth, which the teachers of all papers lack.

    Batch norms stay in training mode: the copy normalises by its batch, as the papers do.
    """
    for module in source.modules():
        # The weight that weight norm derives in every forward pass is no leaf, which cannot be
        # copied while it hangs on a graph.
        derived = vars(module).get("weight")
        if isinstance(derived, torch.Tensor):
            module.weight = derived.detach()
    copied = copy.deepcopy(source).requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    return copied


def follow(trained: nn.Module, average: nn.Module, start: float, progress: float) -> None:
    """Makes ``average`` ``m average + (1 - m) trained``, m from ``start`` to 1 along a cosine.

    Grill et al. 2020 (BYOL), section 3.3: m = 1 - (1 - start) (cos(pi progress) + 1) / 2.
    """
    update_momentum(trained, average, cosine(progress, start, 1.0))


class MomentumObjective(Objective):
    """A method whose targets come from momentum copies, which follow after every step."""

    options: MomentumOptions

    @abstractmethod
    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """What is trained and its momentum copy, of encoder and heads."""

    def end_step(self, progress: float) -> None:
        """Moves the copies."""
        for trained, average in self.pairs():
            follow(trained, average, self.options.momentum, progress)
