"""Recipes: strict settings from YAML with ``key=value`` overrides."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distill.objectives.features import FeatureWeights
from edge_runtime.errors import InputError

S = TypeVar("S", bound="LoopSettings")


class LoopSettings(BaseModel):
    """What the training loop reads. Sizes are (height, width) in pixels."""

    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    size: tuple[int, int] = (224, 288)
    final_size: tuple[int, int] | None = None
    final_epochs: int = Field(0, ge=0)
    lr: float = Field(2e-3, gt=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="lr is for a global batch of 256 and follows its size"
    )
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    weight_decay: float = Field(0.02, ge=0)
    final_weight_decay: float | None = Field(
        None, ge=0, description="reached along a cosine; constant if none"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    clip: float = Field(3.0, gt=0)
    ema: float = Field(0.99, ge=0, lt=1)
    precision: str = "32-true"
    workers: int = Field(1, ge=0)
    seed: int = 0
    probe_every: int = Field(5, ge=1, description="epochs")
    checkpoint_every: int = Field(50, ge=1, description="steps")
    log_every: int = Field(10, ge=1, description="steps")
    bad_steps: int = Field(5, ge=0, description="steps without a finite loss in a row, skipped")
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="of several processes")
    sync_batchnorm: bool = Field(False, description="statistics of the global batch")
    gradient_checkpointing: bool = False
    timeout: float = Field(30.0, gt=0, description="minutes to wait for another process")

    @model_validator(mode="after")
    def _decay_begins(self) -> LoopSettings:
        if self.final_weight_decay and not self.weight_decay:
            raise ValueError("final_weight_decay needs a weight_decay above 0")
        return self

    def size_at(self, epoch: int) -> tuple[int, int]:
        """Input size of an epoch: the last ``final_epochs`` may be at a higher resolution."""
        late = self.final_size is not None and epoch >= self.epochs - self.final_epochs
        return self.final_size if late and self.final_size else self.size


class TrainSettings(LoopSettings):
    """What every training of a student has."""

    min_scale: float = Field(0.4, gt=0, le=1, description="smallest crop, as share of the area")
    neck_width: int = 96
    head_width: int = 96
    head_depth: int = 2


class PretrainSettings(LoopSettings):
    """Settings of ``pretrain``; ``lr`` is for a global batch of 256.

    ``options`` are those of the method, ``encoder_args`` go to timm's ``create_model``.
    """

    method: str = "simclr"
    encoder: str = "vit_small_patch16_224"
    encoder_args: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=2, description="of one process")
    size: tuple[int, int] = (224, 224)
    lr: float = Field(5e-4, gt=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = "linear"
    weight_decay: float = Field(0.05, ge=0)
    ema: float = Field(0.0, ge=0, lt=1, description="0: methods keep an average of their own")
    sync_batchnorm: bool = True
    held_back: int = Field(1000, ge=2, description="images to probe with, at most a tenth of all")
    keep_encoders: bool = Field(False, description="keep the encoder of every probe")


class DistillSettings(TrainSettings):
    """Settings of ``distill``."""

    terms: FeatureWeights = Field(default_factory=lambda: FeatureWeights.model_validate({}))
    views: int = Field(4, ge=1, description="cached views per image")
    tap: int = Field(8, description="stride of the neck map that is matched: 8 or 16")


class SemiSettings(BaseModel):
    """What is learnt from ``finetune --unlabelled``; see ``distill.semi``."""

    model_config = ConfigDict(extra="forbid")
    threshold: float = Field(0.95, ge=0, le=1, description="confidence of a pseudo-label")
    weight: float = Field(1.0, ge=0, description="of the unlabelled loss")
    ratio: int = Field(1, ge=1, description="unlabelled images per labelled one in a batch")
    decay: float = Field(0.99, ge=0, lt=1, description="of the teacher's moving average")
    cutmix: float = Field(0.5, ge=0, le=1, description="share of views with a pasted box, masks")


class FinetuneSettings(TrainSettings):
    """Settings of ``finetune``."""

    mode: Literal["full", "linear", "prototype"] = Field(
        "full", description="train all, only what follows the trunk, or nothing: class means"
    )
    mix: Literal["none", "mixup", "cutmix", "manifold"] = "none"
    mix_alpha: float = Field(1.0, gt=0, description="of the beta distribution that mixes")
    semi: SemiSettings = Field(default_factory=lambda: SemiSettings.model_validate({}))
    freeze: float = Field(0.15, ge=0, le=1, description="share of epochs with the trunk frozen")
    trunk_lr: float = Field(0.3, gt=0, description="trunk learning rate relative to the heads'")
    detection_weight: float = Field(0.3, ge=0)
    class_balance: float = Field(0.5, ge=0, le=1, description="exponent on inverse frequency")
    colour: float = Field(1.0, ge=0, description="strength of colour jitter")


class PredictorSettings(LoopSettings):
    """Settings of ``predictor``; the bundle says the size."""

    epochs: int = Field(240, ge=1)
    batch_size: int = Field(2, ge=1)
    weight_decay: float = Field(1e-3, ge=0)
    warmup: float = Field(0.03, ge=0, lt=1, description="share of all steps")
    clip: float = Field(1.0, gt=0)
    width: int = Field(256, ge=1, description="of the hidden layers")
    probe_every: int = Field(10, ge=1, description="epochs")


def load_settings(cls: type[S], recipe: Path | None, overrides: list[str]) -> S:
    """Reads a YAML recipe, applies ``key=value`` pairs and validates strictly.

    Raises:
        InputError: unreadable recipe, malformed override, unknown key (names the nearest) or value.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        try:
            values = yaml.safe_load(recipe.read_text()) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"recipe {recipe} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"recipe {recipe} must be a mapping of settings")
    for pair in overrides:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{pair!r} is not KEY=VALUE")
        target = values
        *parents, last = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = yaml.safe_load(value)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            near = difflib.get_close_matches(name, cls.model_fields, 1)
            hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
            lines.append(f"{name}: {item['msg']}{hint}")
        raise InputError("wrong settings: " + "; ".join(lines)) from error
