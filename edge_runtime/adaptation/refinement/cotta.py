"""CoTTA: continual test-time domain adaptation (Wang et al., CVPR 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edge_runtime.adaptation.losses import soft_segmentation_loss
from edge_runtime.adaptation.network import Outputs, probable
from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.refinement.teaching import follow, mean_of, objects_distance
from edge_runtime.adaptation.views import Disturbance, whole
from edge_runtime.bundle import Bundle


class Cotta(AdapterMethod):
    """An averaged teacher, averaged over augmentations where it is unsure, and random restoring.

    Args:
        bundle: See `AdapterMethod`.
        lr: Learning rate of Adam.
        ema: Of the teacher's adapter.
        unsure: Mean confidence of the untouched network below which the teacher is averaged over
            augmented frames, the paper's p_th.
        augmented: How many of them, each with its mirror image.
        restored: Share of the adapter's values that go back to the identity in each step.
        options: Of `AdapterMethod`.
    """

    name = "cotta"

    def __init__(
        self,
        bundle: Bundle,
        lr: float = 2.5e-4,
        ema: float = 0.999,
        unsure: float = 0.9,
        augmented: int = 3,
        restored: float = 0.01,
        **options: Any,
    ) -> None:
        self.lr, self.ema, self.unsure = lr, ema, unsure
        self.augmented, self.restored = augmented, restored
        super().__init__(bundle, **options)

    def begin(self) -> None:
        self.optimizer = torch.optim.Adam([self.adapter], lr=self.lr)
        self.teacher = self.adapter.detach().clone()
        self._rng = np.random.default_rng(0)
        self._disturb = Disturbance(masked=0.0)

    def step(self, image: np.ndarray) -> bool:
        told = self._told(image)
        found = self.forward(image)
        loss = objects_distance(found, told)
        if found.segmentation is not None and told.segmentation is not None:
            loss = loss + soft_segmentation_loss(found.segmentation, told.segmentation)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        follow(self.teacher, self.adapter, self.ema)
        with torch.no_grad():
            back = torch.from_numpy(self._rng.random(len(self.adapter)) < self.restored)
            self.adapter[back] = self.source[back]
        return True

    @torch.no_grad()
    def _told(self, image: np.ndarray) -> Outputs:
        """The teacher's answer, over augmentations where the untouched network is unsure."""
        anchor = probable(self.forward(image, self.source))
        sure = anchor.segmentation
        if sure is not None and float(sure.amax(1).mean()) >= self.unsure:
            return probable(self.forward(image, self.teacher))
        answers = []
        for _ in range(self.augmented):
            seen = self._disturb(image, self._rng)
            answers.append(probable(self.forward(seen, self.teacher)))
            back = whole((image.shape[0], image.shape[1]), mirrored=True)
            answers.append(back.of_outputs(probable(self.forward(seen[:, ::-1], self.teacher))))
        return mean_of(answers)


create = Cotta
