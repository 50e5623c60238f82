"""Any timm model, from the hub or a local weights file, as a source of dense features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.encoders import RUN_WEIGHTS, Encoder, EncoderSpec, run_settings
from distill.standardise import Standardiser
from edge_runtime.errors import InputError


@dataclass(frozen=True)
class TeacherSpec:
    """``NAME``, ``NAME@weights.safetensors`` or a run of ``pretrain``, as given to ``--teacher``.

    ``arguments`` change the architecture: those of the run that the weights come from.
    """

    name: str
    weights: Path | None
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> TeacherSpec:
        """Splits the argument; the file, if any, must exist."""
        if (run := Path(text)).is_dir():
            settings = run_settings(run)
            return cls(settings["encoder"], run / RUN_WEIGHTS, settings["encoder_args"])
        name, _, file = text.partition("@")
        weights = Path(file) if file else None
        if weights is not None and not weights.is_file():
            raise InputError(f"teacher weights {weights} not found; give an existing .safetensors")
        if not timm.is_model(name.split(".")[0].removeprefix("hf-hub:")) and "/" not in name:
            close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            raise InputError(f"timm knows no model {name!r}; near it: {', '.join(close) or 'none'}")
        return cls(name, weights, _arguments_beside(name, weights))

    def digest(self) -> str:
        """Identifies name and weights, for cache keys."""
        digest = hashlib.sha256(f"{self.name}{self.arguments or ''}".encode())
        if self.weights is not None:
            digest.update(self.weights.read_bytes())
        return digest.hexdigest()[:16]


def _arguments_beside(name: str, weights: Path | None) -> dict[str, Any]:
    """Arguments of the run whose file this is; none where it is no run's."""
    if weights is None or weights.name != RUN_WEIGHTS:
        return {}
    if not (weights.parent / "config.json").is_file():
        return {}
    settings = run_settings(weights.parent)
    return dict(settings["encoder_args"]) if settings["encoder"] == name else {}


def licences(teachers: list[str]) -> str | None:
    """Licences of the teachers' weights as timm states them, comma-separated; None if unknown."""
    configs = [timm.get_pretrained_cfg(t.partition("@")[0]) for t in teachers]
    known = sorted({c.license for c in configs if c is not None and c.license})
    return ", ".join(known) or None


def load_weights(model: nn.Module, path: Path, what: str) -> None:
    """Loads a safetensors file into a model; the head's classifier may be absent from either.

    A model that gives features of several levels has other names in timm than the whole one
    (``stages_0`` for ``stages.0``, or ``model.`` before all): names count as equal up to that.

    Raises:
        InputError: the file is unreadable or belongs to another architecture.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    load_state(model, state, path, what)


def load_state(model: nn.Module, state: dict[str, Tensor], source: object, what: str) -> None:
    """Loads weights by name; see `load_weights`."""
    own = model.state_dict()
    by_level = {_flat(k): v for k, v in state.items()}
    fits = {k: state.get(k, by_level.get(_flat(k))) for k in own}
    wrong = [k for k, v in fits.items() if v is not None and own[k].shape != v.shape]
    missing = [k for k, v in fits.items() if v is None and not k.endswith("num_batches_tracked")]
    if wrong or missing:
        example = wrong[0] if wrong else missing[0]
        raise InputError(
            f"{source} does not fit {what}: {len(missing)} of {len(own)} tensors missing, "
            f"{len(wrong)} of another shape (first: {example}); give weights of that architecture"
        )
    model.load_state_dict({k: v for k, v in fits.items() if v is not None}, strict=False)


def _flat(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


class Teacher(nn.Module):
    """A frozen model giving dense features [B, C, h, w] and a global vector [B, C'].

    A transformer gives its normalised patch tokens; a convolutional network its stride-16 map
    joined with its last map brought to the same grid.
    """

    def __init__(self, spec: TeacherSpec) -> None:
        super().__init__()
        self.spec = spec
        whole = Encoder(EncoderSpec(spec.name, spec.arguments), hub=spec.weights is None)
        self.is_vit, self.model = whole.is_vit, whole
        if not self.is_vit:
            self.model = timm.create_model(spec.name, features_only=True, **spec.arguments)
            load_state(self.model, whole.model.state_dict(), spec.name, f"teacher {spec.name}")
        if spec.weights is not None:
            own = whole.model if self.is_vit else self.model
            load_weights(own, spec.weights, f"teacher {spec.name}")
        self.register_buffer("mean", torch.tensor(whole.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(whole.std).view(1, 3, 1, 1) * 255)
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
        dense, pooled = self.model(x) if self.is_vit else self._maps(x)
        if self.standardiser is not None:
            dense = self.standardiser(dense)
        return dense, pooled

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
