"""Small images and settings that tests of pretraining share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from distill.pretraining import read_settings
from distill.settings import PretrainSettings

TINY = [
    "encoder=resnet18",
    "encoder_args={layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}",
    "size=[32, 32]",
    "batch_size=8",
    "workers=0",
    "log_every=1",
    "probe_every=1",
    "epochs=2",
    "optimizer=sgd",
]
HEADS = {"simclr": "options={hidden: 16, projection: 8}", "vicreg": "options={expander: 16}"}


def write_images(folder: Path, count: int = 40) -> Path:
    """Noise on smooth colours, 48x48."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        smooth = cv2.resize(
            rng.uniform(20, 235, (6, 6, 3)), (48, 48), interpolation=cv2.INTER_CUBIC
        )
        image = (smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:03d}.png"), image)
    return folder


def tiny(method: str = "simclr", *more: str) -> PretrainSettings:
    """Settings of a run of a few seconds."""
    return read_settings(method, None, [*TINY, HEADS[method], *more])
