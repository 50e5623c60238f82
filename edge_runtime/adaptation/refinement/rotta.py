"""RoTTA: robust test-time adaptation in dynamic scenarios (Yuan et al., CVPR 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_runtime.adaptation.losses import soft_segmentation_loss
from edge_runtime.adaptation.network import probable
from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.refinement.entropy import entropy, samples
from edge_runtime.adaptation.refinement.teaching import follow, objects_distance
from edge_runtime.adaptation.views import Disturbance
from edge_runtime.bundle import Bundle


@dataclass(eq=False)
class _Slot:
    image: np.ndarray
    category: int
    uncertainty: float
    age: int = 0


class Rotta(AdapterMethod):
    """A memory balanced by class, timely and sure, taught from by an averaged teacher.

    The paper's robust batch norm has no place here: what it does, `align` does. A frame's category
    is the class that exceeds its usual share in the stream by most.

    Args:
        bundle: See `AdapterMethod`.
        lr: Learning rate of Adam.
        ema: Of the teacher's adapter.
        capacity: Frames in the memory; a step over all of them follows after as many frames.
        options: Of `AdapterMethod`.
    """

    name = "rotta"

    def __init__(
        self,
        bundle: Bundle,
        lr: float = 1e-3,
        ema: float = 0.999,
        capacity: int = 16,
        **options: Any,
    ) -> None:
        self.lr, self.ema, self.capacity = lr, ema, capacity
        super().__init__(bundle, **options)

    def begin(self) -> None:
        self.optimizer = torch.optim.Adam([self.adapter], lr=self.lr)
        self.teacher = self.adapter.detach().clone()
        self._rng = np.random.default_rng(0)
        self._disturb = Disturbance()
        self._memory: list[_Slot] = []
        self._usual: torch.Tensor | None = None
        self._new = 0

    def step(self, image: np.ndarray) -> bool:
        self._remember(image)
        self._new += 1
        if self._new < self.capacity:
            return False
        self._new = 0
        self.optimizer.zero_grad()
        for slot in self._memory:
            self._loss(slot).backward()
        self.optimizer.step()
        follow(self.teacher, self.adapter, self.ema)
        return True

    def _loss(self, slot: _Slot) -> torch.Tensor:
        """Timely frames count more (equation 6); a share of the whole memory's mean."""
        with torch.no_grad():
            told = probable(self.forward(slot.image, self.teacher))
        found = self.forward(self._disturb(slot.image, self._rng))
        loss = objects_distance(found, told)
        if found.segmentation is not None and told.segmentation is not None:
            loss = loss + soft_segmentation_loss(found.segmentation, told.segmentation)
        age = slot.age / self.capacity
        return loss * math.exp(-age) / (1 + math.exp(-age)) / len(self._memory)

    @torch.no_grad()
    def _remember(self, image: np.ndarray) -> None:
        """Category-balanced sampling with timeliness and uncertainty (section 3.2)."""
        found = samples(self.forward(image, self.teacher))
        shares = found.mean(0) if len(found) else torch.zeros(found.shape[1])
        self._usual = shares if self._usual is None else torch.lerp(self._usual, shares, 0.05)
        category = int((shares - self._usual).argmax())
        doubt = float(entropy(found).mean()) / math.log(found.shape[1]) if len(found) else 1.0
        for slot in self._memory:
            slot.age += 1
        slot = _Slot(image, category, doubt)
        if len(self._memory) >= self.capacity:
            counts = [sum(s.category == c.category for s in self._memory) for c in self._memory]
            alike = [s for s in self._memory if s.category == category]
            crowded = [s for s, n in zip(self._memory, counts, strict=True) if n == max(counts)]
            rivals = alike if len(alike) >= self.capacity / found.shape[1] else crowded
            worst = max(rivals, key=self._badness)
            if rivals is alike and self._badness(worst) < self._badness(slot):
                return
            self._memory.remove(worst)
        self._memory.append(slot)

    def _badness(self, slot: _Slot) -> float:
        """Old and unsure frames go first (equation 5)."""
        return 1 / (1 + math.exp(-slot.age / self.capacity)) + slot.uncertainty


create = Rotta
