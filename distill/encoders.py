"""A timm model as the encoder that self-supervised methods train: pooled and dense features."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_runtime.errors import InputError


@dataclass(frozen=True)
class EncoderSpec:
    """What rebuilds an encoder: timm's name, and arguments that change its architecture.

    ``arguments`` go to ``timm.create_model``, for instance ``{"img_size": 32, "patch_size": 4}``
    for a transformer on small images.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


RUN_WEIGHTS = "encoder.safetensors"


def run_settings(run: Path) -> dict[str, Any]:
    """Settings of a finished run of ``pretrain``: its encoder, encoder_args, size and more.

    Raises:
        InputError: it is none, or has no weights yet.
    """
    try:
        settings = dict(json.loads((run / "config.json").read_text())["settings"])
        settings["encoder"], settings["size"], settings["encoder_args"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{run} is not a run folder of pretrain: config.json: {error!r}; give a timm model, "
            "NAME@FILE.safetensors or such a folder"
        ) from error
    if not (run / RUN_WEIGHTS).is_file():
        raise InputError(f"{run} has no {RUN_WEIGHTS}: its run is not finished")
    return settings


class Encoder(nn.Module):
    """A timm model without classifier.

    Attributes:
        is_vit: whether it is a transformer on a grid of patch tokens.
        channels: D of pooled features.
        dense_channels: C of dense features.
        stride: pixels of the image per cell of the dense map.
    """

    def __init__(self, spec: EncoderSpec, hub: bool = False) -> None:
        super().__init__()
        self.spec = spec
        try:
            probe = timm.create_model(spec.name, num_classes=0, **spec.arguments)
            self.is_vit = hasattr(probe, "patch_embed") and hasattr(probe, "num_prefix_tokens")
            dynamic = {"dynamic_img_size": True} if self.is_vit else {}
            self.model = timm.create_model(
                spec.name, pretrained=hub, num_classes=0, **{**dynamic, **spec.arguments}
            )
        except Exception as error:
            raise InputError(
                f"weights of {spec.name} cannot be had from the hub ({type(error).__name__}: "
                f"{error}); give them as a .safetensors file: {spec.name}@FILE.safetensors"
                if hub
                else f"encoder {spec.name!r} cannot be built ({type(error).__name__}: {error}); "
                "choose a timm model and arguments that it takes"
            ) from error
        config = self.model.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.std: tuple[float, ...] = tuple(config["std"])
        self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        config = self.model.pretrained_cfg
        default = config["input_size"][1] if config.get("fixed_input_size") else 64
        asked = self.spec.arguments.get("img_size", default)
        side = asked if isinstance(asked, int) else asked[0]
        if self.is_vit:
            patch = self.model.patch_embed.patch_size[0]
            side = max(side // patch, 1) * patch
        training = self.model.training
        self.model.eval()
        dense, pooled = self(torch.zeros(1, 3, side, side))
        self.model.train(training)
        if dense.ndim != 4 or pooled.ndim != 2:
            raise InputError(
                f"encoder {self.spec.name!r} gives no feature map but {list(dense.shape[1:])}; "
                "choose a vision transformer or a convolutional network"
            )
        self.channels, self.dense_channels = pooled.shape[1], dense.shape[1]
        self.stride = side // dense.shape[-1]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Dense [B, C, h, w] and pooled [B, D] features of normalised images [B, 3, H, W].

        A transformer's pooled vector is its class token where it has one, else the mean of its
        patches; its images are brought to a multiple of the patch. A convolutional network's dense
        map is its last one.
        """
        if not self.is_vit:
            dense = self.model.forward_features(image)
            pooled = self.model.forward_head(dense, pre_logits=True)
            last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"  # as Swin's are
            return (dense.permute(0, 3, 1, 2) if last else dense), pooled
        patch = self.model.patch_embed.patch_size
        height, width = (max(s // p, 1) for s, p in zip(image.shape[-2:], patch, strict=True))
        size = (height * patch[0], width * patch[1])
        if tuple(image.shape[-2:]) != size:
            image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        tokens = self.model.forward_features(image)
        prefix = self.model.num_prefix_tokens
        patches = tokens[:, prefix:]
        pooled = tokens[:, 0] if prefix else patches.mean(1)
        return patches.transpose(1, 2).unflatten(2, (height, width)), pooled

    def pooled(self, image: Tensor) -> Tensor:
        """Pooled features [B, D] alone."""
        features: Tensor = self(image)[1]
        return features

    def checkpoint_gradients(self, enable: bool = True) -> None:
        """Recomputes activations in the backward pass, where timm can for this model.

        Raises:
            InputError: it cannot.
        """
        try:
            self.model.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise InputError(
                f"timm has no gradient checkpointing for {self.spec.name}; leave it off"
            ) from error
