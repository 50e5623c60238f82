"""Classification of whole images: the model, its batches, loss and class means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from distill.data.images import Images
from distill.data.views import jitter_colours, random_view, resize_image, sample_generator
from distill.encoders import Encoder
from distill.settings import FinetuneSettings
from distill.tasks.mixing import beta, mixed_features

_SCALE = 10.0  # of cosines to class means: their softmax is not flat


class Classifier(nn.Module):
    """An encoder and one linear layer on its pooled features.

    Args:
        cosine: features and rows of the layer have length one: nearest class mean.
    """

    def __init__(self, encoder: Encoder, classes: int, cosine: bool = False) -> None:
        super().__init__()
        self.trunk, self.cosine = encoder, cosine
        self.classify = nn.Linear(encoder.channels, classes, bias=not cosine)
        mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
        self.register_buffer("mean", mean.view(1, 3, 1, 1) * 255, False)
        self.register_buffer("std", std.view(1, 3, 1, 1) * 255, False)

    def features(self, image: Tensor) -> Tensor:
        """Pooled features [B, D] of uint8 or float images [B, H, W, 3] in 0..255."""
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        pooled = self.trunk.pooled(x)
        return F.normalize(pooled, dim=1) if self.cosine else pooled

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.classify(self.features(image))
        return _SCALE * logits if self.cosine else logits

    def mixing_points(self) -> list[nn.Module]:
        """Modules whose output may be mixed: the trunk's stages or blocks, one after the other."""
        body = self.trunk.model
        found: list[nn.Module] = []
        for name in ("stem", "stages", "blocks", "layers"):
            part = getattr(body, name, None)
            found += list(part) if isinstance(part, nn.Sequential | nn.ModuleList) else []
        numbered = [getattr(body, f"layer{i}", None) for i in range(1, 5)]
        return found or [m for m in numbered if m is not None]


class MixedLoss(nn.Module):
    """Cross-entropy, of samples that are mixed while training.

    ``mixup`` (Zhang et al. 2018) and ``cutmix`` (Yun et al. 2019) are torchvision's; ``manifold``
    mixes what leaves a stage of the trunk drawn for each step, or the image (Verma et al. 2019).
    """

    def __init__(self, settings: FinetuneSettings, classes: int) -> None:
        super().__init__()
        self.kind, self.alpha = settings.mix, settings.mix_alpha
        chosen = {"mixup": v2.MixUp, "cutmix": v2.CutMix}.get(settings.mix)
        self.transform = chosen(alpha=settings.mix_alpha, num_classes=classes) if chosen else None

    def forward(self, model: Classifier, image: Tensor, label: Tensor) -> Tensor:
        """Scalar loss of uint8 images [B, H, W, 3] with labels [B]."""
        target: Tensor = label
        if self.transform is not None:
            mixed, target = self.transform(image.permute(0, 3, 1, 2).float(), label)
            image = mixed.permute(0, 2, 3, 1)
        if self.kind == "manifold":
            return self._manifold(model, image, label)
        return F.cross_entropy(model(image).float(), target)

    def _manifold(self, model: Classifier, image: Tensor, label: Tensor) -> Tensor:
        points = model.mixing_points()
        share, order = beta(self.alpha), torch.randperm(len(image)).to(image.device)
        layer = int(torch.randint(len(points) + 1, ()))
        if layer == len(points):
            logits = model(share * image.float() + (1 - share) * image[order].float())
        else:
            with mixed_features(points[layer], share, order):
                logits = model(image)
        own, other = (F.cross_entropy(logits.float(), t) for t in (label, label[order]))
        return share * own + (1 - share) * other


class ClassifiedViews(TorchDataset[dict[str, Any]]):
    """Items (epoch, index) -> ``image`` uint8 [H, W, 3], a random view, and ``label``.

    Args:
        rows: numbers of the images to use, within ``images``.
    """

    def __init__(self, images: Images, rows: np.ndarray, settings: FinetuneSettings) -> None:
        self.images, self.rows, self.settings = images, rows, settings

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        s, row = self.settings, int(self.rows[index])
        rng = sample_generator(s.seed, epoch, index)
        view = random_view(self.images.read(row), rng, s.size_at(epoch), s.min_scale)
        image = jitter_colours(view, rng, s.colour)
        return {"image": torch.from_numpy(image), "label": torch.tensor(self.images.label(row))}


class StrongImage:
    """FixMatch's strong view: RandAugment (Cubuk et al. 2020), then a part erased."""

    def __init__(self) -> None:
        self.transform = v2.Compose([v2.RandAugment(), v2.RandomErasing(p=1.0, scale=(0.02, 0.2))])

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Of a uint8 image [H, W, 3]; the global generators are left as they were."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(1 << 62)))
            changed: Tensor = self.transform(torch.from_numpy(image).permute(2, 0, 1))
        return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())


@torch.no_grad()
def class_means(
    model: Classifier, images: Images, rows: np.ndarray, size: tuple[int, int], batch: int = 64
) -> Tensor:
    """Mean of the features [C, D] of each class, of length one (Snell et al. 2017, section 2.2)."""
    device = next(model.parameters()).device
    sums = torch.zeros_like(model.classify.weight)
    model.eval()
    for start in range(0, len(rows), batch):
        part = [int(r) for r in rows[start : start + batch]]
        shown = np.stack([resize_image(images.read(r), size) for r in part])
        labels = torch.tensor([images.label(r) for r in part], device=device)
        sums.index_add_(0, labels, model.features(torch.from_numpy(shown).to(device)))
    return F.normalize(sums, dim=1)
