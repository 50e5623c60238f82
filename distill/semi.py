"""Learning from unlabelled images beside labelled ones: consistency with confident pseudo-labels.

A teacher, the moving average of what is trained, labels a weakly changed view; where it is
confident, the trained model must say the same of a strongly changed view. For whole images this is
FixMatch (Sohn et al. 2020, section 2.2); for pixels its transfer to segmentation with CutMix as in
the basic form of UniMatch (Yang et al. 2023, section 3.1), the teacher as in Mean Teacher
(Tarvainen & Valpola 2017).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from distill.data.views import jitter_colours, random_view, sample_generator
from distill.settings import FinetuneSettings, SemiSettings
from distill.tasks.mixing import cut_boxes, paste

_STREAM = 7919  # keeps the draws of unlabelled images apart from those of labelled ones
Reader = Callable[[int], np.ndarray]
Strong = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def strong_photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Strong change of colours and sharpness that moves no pixel, uint8 [H, W, 3]."""
    out = jitter_colours(image, rng, 1.5) if rng.random() < 0.8 else image
    if rng.random() < 0.2:
        out = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.5:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.3, 2.0)))
    return out


class WithUnlabelled(TorchDataset[dict[str, Any]]):
    """Labelled items, each with ``ratio`` unlabelled views that follow from (seed, epoch, index).

    Adds ``weak`` and ``strong`` uint8 [ratio, H, W, 3] to what ``labelled`` gives.

    Args:
        read: the image of an index below ``count``, uint8 [H, W, 3].
        strong: what makes a strong view of a weak one.
    """

    def __init__(
        self,
        labelled: TorchDataset[dict[str, Any]],
        read: Reader,
        count: int,
        settings: FinetuneSettings,
        strong: Strong = strong_photometric,
    ) -> None:
        self.labelled, self.read, self.count = labelled, read, count
        self.settings, self.strong = settings, strong

    def __len__(self) -> int:
        return len(self.labelled)  # type: ignore[arg-type]

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        s = self.settings
        rng = sample_generator(s.seed + _STREAM, epoch, index)
        size = s.size_at(epoch)
        weak = [
            random_view(self.read(int(rng.integers(self.count))), rng, size, s.min_scale)
            for _ in range(s.semi.ratio)
        ]
        strong = [self.strong(view, rng) for view in weak]
        return {
            **self.labelled[item],
            "weak": torch.from_numpy(np.stack(weak)),
            "strong": torch.from_numpy(np.stack(strong)),
        }


class Consistency(nn.Module):
    """The loss on unlabelled views, with the teacher that labels them.

    Args:
        model: what is trained; the teacher starts as its copy.
        logits: maps a model and uint8 images [B, H, W, 3] to logits [B, C] or [B, C, h, w].
    """

    def __init__(
        self,
        model: nn.Module,
        settings: SemiSettings,
        logits: Callable[[nn.Module, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.settings, self.logits = settings, logits
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """One step of the teacher's average, shorter at first; buffers are copied."""
        n = int(self.steps)
        decay = min(self.settings.decay, (1 + n) / (10 + n))
        own = self.teacher.parameters()
        for mine, theirs in zip(own, model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - decay)
        self.steps += 1
        for mine, theirs in zip(self.teacher.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def forward(self, model: nn.Module, weak: Tensor, strong: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the share of views or pixels that were confident.

        Args:
            weak, strong: uint8 [B, U, H, W, 3].
        """
        weak, strong = weak.flatten(0, 1), strong.flatten(0, 1)
        if model.training:
            self.follow(model)
        self.teacher.eval()
        with torch.no_grad():
            probability = self.logits(self.teacher, weak).float().softmax(1)
            confidence, label = probability.max(1)
            if label.ndim == 3 and self.settings.cutmix:
                strong, label, confidence = self._cut(strong, label, confidence)
        out = self.logits(model, strong).float()
        sure = (confidence >= self.settings.threshold).float()
        # The mean over all, not over the confident: few pseudo-labels weigh little.
        loss = (F.cross_entropy(out, label, reduction="none") * sure).mean()
        return self.settings.weight * loss, sure.mean()

    def _cut(
        self, image: Tensor, label: Tensor, confidence: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """CutMix between neighbours of the batch, in image and pseudo-labels alike."""
        boxes = cut_boxes(len(image), self.settings.cutmix)
        image = paste(image.permute(0, 3, 1, 2), boxes).permute(0, 2, 3, 1)
        return image, paste(label[:, None], boxes)[:, 0], paste(confidence[:, None], boxes)[:, 0]
