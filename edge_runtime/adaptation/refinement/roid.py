"""ROID: universal test-time adaptation by weight ensembling (Marsden et al., WACV 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_runtime.adaptation.network import run
from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.refinement.entropy import entropy, samples
from edge_runtime.adaptation.refinement.teaching import follow
from edge_runtime.adaptation.views import Disturbance
from edge_runtime.bundle import Bundle


class Roid(AdapterMethod):
    """Soft likelihood ratio, weighted by certainty and diversity, and a pull to the source.

    The samples of a batch are the pixels of one frame, so that weights which need a batch exist at
    batch size one. Prior correction is left out: the class shares of one frame are no prior.

    Args:
        bundle: See `AdapterMethod`.
        lr: Learning rate of SGD with momentum 0.9.
        keep: Share of the adapter that is kept in each step; the rest is the identity.
        temperature: Of the weights.
        options: Of `AdapterMethod`.
    """

    name = "roid"

    def __init__(
        self,
        bundle: Bundle,
        lr: float = 2.5e-4,
        keep: float = 0.99,
        temperature: float = 1 / 3,
        **options: Any,
    ) -> None:
        self.lr, self.keep, self.temperature = lr, keep, temperature
        super().__init__(bundle, **options)

    def begin(self) -> None:
        self.optimizer = torch.optim.SGD([self.adapter], lr=self.lr, momentum=0.9)
        self._mean: Tensor | None = None
        self._rng = np.random.default_rng(0)
        self._disturb = Disturbance(masked=0.0)

    def step(self, image: np.ndarray) -> bool:
        found = samples(self.forward(image))
        if not len(found):
            return False
        weight = self._weights(found.detach())
        likely = found.clamp(1e-8, 0.99)
        ratio = -(likely * (likely / (1 - likely)).log()).sum(-1)
        loss = (weight * ratio).sum() / weight.sum().clamp_min(1e-8)
        loss = loss + self._consistency(image, found, weight)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            follow(self.adapter.data, self.source, self.keep)
        return True

    def _weights(self, found: Tensor) -> Tensor:
        """Certain samples that differ from the usual prediction count (section 3.2)."""
        mean = found.mean(0)
        self._mean = mean if self._mean is None else 0.9 * self._mean + 0.1 * mean
        diverse = _stretched(1 - F.cosine_similarity(found, self._mean[None], dim=1))
        certain = _stretched(-entropy(found))
        weight = (diverse * certain / self.temperature).exp()
        return torch.where(diverse < diverse.mean(), torch.zeros_like(weight), weight)

    def _consistency(self, image: np.ndarray, found: Tensor, weight: Tensor) -> Tensor:
        """Symmetric cross-entropy with a disturbed frame (equation 8); of segmentation only."""
        batch = torch.from_numpy(self._disturb(image, self._rng))[None]
        other = run(self.student, batch, self.adapter)
        if other.segmentation is None:
            return found.new_zeros(())
        seen = samples(other)
        cross = -(found.detach() * seen.clamp_min(1e-8).log()).sum(-1)
        reverse = -(seen * found.detach().clamp_min(1e-8).log()).sum(-1)
        return (weight * (cross + reverse) / 2).sum() / weight.sum().clamp_min(1e-8)


def _stretched(values: Tensor) -> Tensor:
    """Brought to 0..1; all ones where they are equal."""
    low, high = values.min(), values.max()
    return torch.ones_like(values) if high - low < 1e-8 else (values - low) / (high - low)


create = Roid
