"""Small encoders, and pictures whose class is their colour."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from distill.encoders import Encoder, EncoderSpec

# Compiling glass blur takes longer than running it on small pictures; a slow test compiles it.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

TINY = EncoderSpec("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]})
COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 50, 40)}


@pytest.fixture
def encoder() -> Encoder:
    """A very small convolutional network with random weights."""
    torch.manual_seed(0)
    return Encoder(TINY).eval()


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 classes, 20 pictures each of 40x48 pixels: noise on a class's colour."""
    root = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(20):
            image = np.clip(np.array(colour) + rng.normal(0, 25, (40, 48, 3)), 0, 255)
            cv2.imwrite(str(root / name / f"{i:02d}.png"), image.astype(np.uint8)[..., ::-1])
    return root
