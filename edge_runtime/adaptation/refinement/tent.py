"""TENT: fully test-time adaptation by entropy minimisation (Wang et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.refinement.entropy import entropy, samples
from edge_runtime.bundle import Bundle


class Tent(AdapterMethod):
    """Gradient descent on the mean entropy.

    Args:
        bundle: See `AdapterMethod`.
        lr: Learning rate of SGD with momentum 0.9.
        options: Of `AdapterMethod`.
    """

    name = "tent"

    def __init__(self, bundle: Bundle, lr: float = 2.5e-4, **options: Any) -> None:
        self.lr = lr
        super().__init__(bundle, **options)

    def begin(self) -> None:
        self.optimizer = torch.optim.SGD([self.adapter], lr=self.lr, momentum=0.9)

    def step(self, image: np.ndarray) -> bool:
        found = samples(self.forward(image))
        if not len(found):
            return False
        self.optimizer.zero_grad()
        entropy(found).mean().backward()
        self.optimizer.step()
        return True


create = Tent
