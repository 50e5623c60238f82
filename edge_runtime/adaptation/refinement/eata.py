"""EATA: efficient test-time adaptation without forgetting (Niu et al., ICML 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.refinement.entropy import entropy, margin, samples
from edge_runtime.bundle import Bundle
from edge_runtime.selftest import load_canary


class Eata(AdapterMethod):
    """Entropy of reliable, non-redundant samples, and a Fisher pull towards the identity.

    The Fisher information comes from the bundle's canary: squared gradients of the cross-entropy
    against the network's own labels (section 3.3).

    Args:
        bundle: See `AdapterMethod`.
        lr: Learning rate of SGD with momentum 0.9.
        redundancy: Samples whose cosine with the running mean prediction is above are skipped;
            the paper's epsilon, as one minus. Off at 1: pixels of one frame are alike.
        fisher: Weight of the pull.
        options: Of `AdapterMethod`.
    """

    name = "eata"

    def __init__(
        self,
        bundle: Bundle,
        lr: float = 2.5e-4,
        redundancy: float = 0.95,
        fisher: float = 1.0,
        **options: Any,
    ) -> None:
        self.lr, self.redundancy, self.fisher = lr, redundancy, fisher
        self._information: Tensor | None = None
        super().__init__(bundle, **options)

    def begin(self) -> None:
        self.optimizer = torch.optim.SGD([self.adapter], lr=self.lr, momentum=0.9)
        self._mean: Tensor | None = None
        if self._information is None:
            self._information = self._fisher_information()

    def step(self, image: np.ndarray) -> bool:
        found = samples(self.forward(image))
        if not len(found):
            return False
        uncertainty = entropy(found)
        limit = margin(found.shape[1])
        chosen = uncertainty.detach() < limit
        if self._mean is not None:
            alike = F.cosine_similarity(found.detach(), self._mean[None], dim=1)
            chosen &= alike.abs() < self.redundancy
        if not bool(chosen.any()):
            return False
        kept = uncertainty[chosen]
        now = found.detach()[chosen].mean(0)
        self._mean = now if self._mean is None else 0.9 * self._mean + 0.1 * now
        weight = (limit - kept.detach()).exp()
        assert self._information is not None
        pull = (self._information * (self.adapter - self.source).square()).sum()
        self.optimizer.zero_grad()
        ((weight * kept).mean() + self.fisher * pull).backward()
        self.optimizer.step()
        return True

    def _fisher_information(self) -> Tensor:
        """Diagonal over the adapter's values, float [A]."""
        images = load_canary(self.bundle)["images"]
        total = torch.zeros_like(self.source)
        for image in images:
            at = self.source.clone().requires_grad_(True)
            found = samples(self.forward(image, at))
            if not len(found):
                continue
            loss = F.nll_loss(found.clamp_min(1e-8).log(), found.detach().argmax(1))
            total += torch.autograd.grad(loss, at)[0].square()
        return total / len(images)


create = Eata
