"""What an encoder is worth while it trains: judged on images held back, dead ones found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from distill.data.images import JoinedImages
from distill.data.views import resize_image
from distill.encoders import Encoder, EncoderSpec
from distill.evaluation.features import features_of
from distill.evaluation.knn import knn_accuracy
from distill.evaluation.quality import LEAST_SPREAD, collapse, rankme, spread, uniformity
from distill.settings import PretrainSettings
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_bytes

_LOOKED_AT = 64  # images, to see whether all are alike
_NEIGHBOURS = 4000  # labelled training images that k-NN chooses from
_THUMBNAIL = (16, 16)
_ALIKE = 1.0  # of 255


def check_images(images: JoinedImages, rows: np.ndarray) -> None:
    """Refuses images from which nothing can be learnt.

    Raises:
        InputError: all are of one colour, or all the same.
    """
    picks = rows[np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(int)]
    small = np.stack([resize_image(images.read(int(i)), _THUMBNAIL) for i in picks])
    pixels = small.reshape(len(small), -1, 3).astype(np.float32)
    flat = pixels.std(1).max(1) < _ALIKE
    if flat.all():
        colour = pixels[0].mean(0).round().astype(int).tolist()
        raise InputError(
            f"all {len(picks)} images looked at are of one colour, the first is RGB {colour}; "
            "check the camera or the decoding"
        )
    if len(picks) > 1 and np.abs(pixels - pixels[0]).max() < _ALIKE:
        raise InputError(
            f"all {len(picks)} images looked at are the same; methods learn from how images differ"
        )


class PretrainProbe:
    """Figures of an encoder's weights; the first process judges, every process gets them.

    RankMe, spread and uniformity on the images held back and, where all have classes, k-NN.
    """

    def __init__(
        self,
        images: JoinedImages,
        rows: np.ndarray,
        held: np.ndarray,
        settings: PretrainSettings,
        fabric: Any,
        out: Path,
    ) -> None:
        self.images, self.held, self.settings = images, held, settings
        self.fabric, self.out = fabric, out
        picks = np.random.default_rng(settings.seed).permutation(len(rows))[:_NEIGHBOURS]
        self.bank = rows[np.sort(picks)]
        self.encoder: Encoder | None = None

    def __call__(
        self, weights: dict[str, Tensor], epoch: int, compared: float
    ) -> tuple[dict[str, float], str]:
        """Figures, and what is dead about the embeddings or nothing; every process calls it.

        Args:
            compared: spread of the embeddings that the loss compares, 0 to 1.
        """
        found: tuple[dict[str, float], str] = ({}, "")
        if self.fabric.is_global_zero:
            found = self._judge(weights)
            if not found[1] and compared < LEAST_SPREAD:
                found = found[0], f"the loss compares embeddings that agree: spread {compared:.2g}"
            if self.settings.keep_encoders:
                name = f"encoder-{epoch:04d}.safetensors"
                atomic_write_bytes(self.out / "encoders" / name, save(weights))
        return self.fabric.broadcast(found)  # type: ignore[no-any-return]

    def _judge(self, weights: dict[str, Tensor]) -> tuple[dict[str, float], str]:
        if len(self.held) < 2:
            return {}, ""
        if self.encoder is None:
            with torch.random.fork_rng():
                spec = EncoderSpec(self.settings.encoder, self.settings.encoder_args)
                self.encoder = Encoder(spec).eval().to(self.fabric.device)
        self.encoder.model.load_state_dict(weights)
        held = features_of(self.encoder, self._read(self.held))
        dead = collapse(held)
        if dead or not torch.isfinite(held).all():
            return {"spread": spread(held)}, dead or "the embeddings are not finite"
        figures = {
            "rankme": rankme(held),
            "spread": spread(held),
            "uniformity": uniformity(held),
        }
        labels = [self._labels(rows) for rows in (self.bank, self.held)]
        if labels[0] is not None and labels[1] is not None:
            bank = features_of(self.encoder, self._read(self.bank))
            figures["knn"] = knn_accuracy(bank, labels[0], held, labels[1])
        return figures, ""

    def _read(self, rows: np.ndarray) -> Iterable[np.ndarray]:
        return (resize_image(self.images.read(int(i)), self.settings.size) for i in rows)

    def _labels(self, rows: np.ndarray) -> Tensor | None:
        labels = [self.images.label(int(i)) for i in rows]
        return None if None in labels else torch.tensor(labels)
