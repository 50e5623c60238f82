"""Any timm model, from the hub or a local weights file, as a source of dense features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.standardise import Standardiser
from edge_runtime.errors import InputError


@dataclass(frozen=True)
class TeacherSpec:
    """``NAME`` or ``NAME@weights.safetensors`` as given to ``--teacher``."""

    name: str
    weights: Path | None

    @classmethod
    def parse(cls, text: str) -> TeacherSpec:
        """Splits the argument; the file, if any, must exist."""
        name, _, file = text.partition("@")
        weights = Path(file) if file else None
        if weights is not None and not weights.is_file():
            raise InputError(f"teacher weights {weights} not found; give an existing .safetensors")
        if not timm.is_model(name.split(".")[0].removeprefix("hf-hub:")) and "/" not in name:
            close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            raise InputError(f"timm knows no model {name!r}; near it: {', '.join(close) or 'none'}")
        return cls(name, weights)

    def digest(self) -> str:
        """Identifies name and weights, for cache keys."""
        digest = hashlib.sha256(self.name.encode())
        if self.weights is not None:
            digest.update(self.weights.read_bytes())
        return digest.hexdigest()[:16]


def licences(teachers: list[str]) -> str | None:
    """Licences of the teachers' weights as timm states them, comma-separated; None if unknown."""
    configs = [timm.get_pretrained_cfg(t.partition("@")[0]) for t in teachers]
    known = sorted({c.license for c in configs if c is not None and c.license})
    return ", ".join(known) or None


def load_weights(model: nn.Module, path: Path, what: str) -> None:
    """Loads a safetensors file into a model; the head's classifier may be absent from either.

    Raises:
        InputError: the file is unreadable or belongs to another architecture.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    own = model.state_dict()
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    if wrong or missing:
        example = wrong[0] if wrong else missing[0]
        raise InputError(
            f"{path} does not fit {what}: {len(missing)} of {len(own)} tensors missing, "
            f"{len(wrong)} of another shape (first: {example}); give weights of that architecture"
        )
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


class Teacher(nn.Module):
    """A frozen model giving dense features [B, C, h, w] and a global vector [B, C'].

    A transformer gives its normalised patch tokens; a convolutional network its stride-16 map
    joined with its last map brought to the same grid.
    """

    def __init__(self, spec: TeacherSpec) -> None:
        super().__init__()
        self.spec = spec
        hub = spec.weights is None
        probe = timm.create_model(spec.name, pretrained=False, num_classes=0)
        self.is_vit = hasattr(probe, "patch_embed") and hasattr(probe, "num_prefix_tokens")
        try:
            if self.is_vit:
                self.model = timm.create_model(
                    spec.name, pretrained=hub, num_classes=0, dynamic_img_size=True
                )
            else:
                self.model = timm.create_model(spec.name, pretrained=hub, features_only=True)
        except Exception as error:
            if not hub:
                raise
            raise InputError(
                f"weights of {spec.name} cannot be had from the hub ({type(error).__name__}: "
                f"{error}); give them as {spec.name}@FILE.safetensors"
            ) from error
        if spec.weights is not None:
            load_weights(self.model, spec.weights, f"teacher {spec.name}")
        config = probe.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1) * 255)
        self.standardiser: Standardiser | None = None
        self.eval().requires_grad_(False)
        with torch.no_grad():
            dense, pooled = self(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))
        self.channels, self.pooled_channels = dense.shape[1], pooled.shape[1]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Dense [B, C, h, w] (standardised once fitted) and global [B, C'] features.

        Args:
            image: uint8 [B, H, W, 3], RGB.
        """
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        dense, pooled = self._tokens(x) if self.is_vit else self._maps(x)
        if self.standardiser is not None:
            dense = self.standardiser(dense)
        return dense, pooled

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patch = self.model.patch_embed.patch_size
        height, width = (s // p for s, p in zip(x.shape[-2:], patch, strict=True))
        size = (height * patch[0], width * patch[1])
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        tokens = self.model.forward_features(x)
        prefix = self.model.num_prefix_tokens
        patches = tokens[:, prefix:]
        pooled = tokens[:, 0] if prefix else patches.mean(1)
        return patches.transpose(1, 2).unflatten(2, (height, width)), pooled

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model(x)
        reductions = self.model.feature_info.reduction()
        mid = features[reductions.index(16)] if 16 in reductions else features[-1]
        last = features[-1]
        pooled = last.mean(dim=(2, 3))
        if last is mid:
            return mid, pooled
        last = F.interpolate(last, size=mid.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([mid, last], 1), pooled

    @torch.no_grad()
    def fit_standardiser(self, batches: list[Tensor]) -> None:
        """Fits PHI standardisation on the tokens of some image batches."""
        self.standardiser = None
        tokens = [self(batch)[0].flatten(2).transpose(1, 2).flatten(0, 1) for batch in batches]
        self.standardiser = Standardiser.fit(torch.cat(tokens))
