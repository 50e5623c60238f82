"""SAR: sharpness-aware and reliable entropy minimisation (Niu et al., ICLR 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.refinement.entropy import entropy, margin, samples
from edge_runtime.bundle import Bundle


class Sar(AdapterMethod):
    """Entropy of reliable samples at the worst point nearby, with a reset on collapse.

    Args:
        bundle: See `AdapterMethod`.
        lr: Learning rate of SGD with momentum 0.9.
        radius: How far the worst point may lie, the paper's rho.
        collapse: Running entropy below which the adapter is reset, as a share of ln C: the paper's
            0.2 for 1,000 classes.
        options: Of `AdapterMethod`.
    """

    name = "sar"

    def __init__(
        self,
        bundle: Bundle,
        lr: float = 2.5e-4,
        radius: float = 0.05,
        collapse: float = 0.029,
        **options: Any,
    ) -> None:
        self.lr, self.radius, self.collapse = lr, radius, collapse
        super().__init__(bundle, **options)

    def begin(self) -> None:
        self.optimizer = torch.optim.SGD([self.adapter], lr=self.lr, momentum=0.9)
        self._average: float | None = None

    def step(self, image: np.ndarray) -> bool:
        found = samples(self.forward(image))
        uncertainty = entropy(found)
        limit = margin(found.shape[1])
        reliable = uncertainty.detach() < limit
        if not bool(reliable.any()):
            return False
        gradient = torch.autograd.grad(uncertainty[reliable].mean(), self.adapter)[0]
        worst = self.adapter + self.radius * gradient / gradient.norm().clamp_min(1e-12)
        return self._descend(image, worst.detach(), limit)

    def _descend(self, image: np.ndarray, worst: torch.Tensor, limit: float) -> bool:
        """Step with the gradient at the worst point, over the samples that are reliable there."""
        at = worst.clone().requires_grad_(True)
        found = samples(self.forward(image, at))
        uncertainty = entropy(found)
        reliable = uncertainty.detach() < limit
        if not bool(reliable.any()):
            return False
        loss = uncertainty[reliable].mean()
        self.adapter.grad = torch.autograd.grad(loss, at)[0]
        self.optimizer.step()
        old = self._average
        now = float(loss.detach())
        self._average = now if old is None else 0.9 * old + 0.1 * now
        if self._average < self.collapse * np.log(found.shape[1]):
            self.reset()
        return True


create = Sar
