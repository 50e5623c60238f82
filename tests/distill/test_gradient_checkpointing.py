"""Recomputing activations changes no gradient and takes less memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.encoders import Encoder, EncoderSpec
from distill.objectives.simclr import SimCLR, SimCLROptions
from edge_runtime.errors import InputError

VIT = {"img_size": 64, "patch_size": 8, "depth": 12, "embed_dim": 96, "num_heads": 3}
STEP = """
import json, resource, sys, torch
from distill.encoders import Encoder, EncoderSpec
torch.set_num_threads(1)
encoder = Encoder(EncoderSpec("vit_tiny_patch16_224", json.loads(sys.argv[1])))
encoder.checkpoint_gradients(sys.argv[2] == "on")
images = torch.zeros(64, 3, 64, 64)
encoder.pooled(images[:1]).square().mean().backward()  # loads what a first step loads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoder.pooled(images).square().mean().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("vit_tiny_patch16_224", VIT | {"depth": 3}), ("resnet18", {"layers": [1, 1, 1, 1]})],
)
def test_gradients_are_identical(name: str, arguments: dict) -> None:
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        options = SimCLROptions.model_validate({"hidden": 16, "projection": 8})
        objective = SimCLR(Encoder(EncoderSpec(name, arguments)), options).train()
        if enable:
            objective.encoder.checkpoint_gradients()
        torch.manual_seed(1)
        objective([torch.randn(4, 3, 64, 64) for _ in range(2)])["loss"].backward()
        gradients.append([p.grad for p in objective.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def peak(switch: str) -> int:
    """KiB that a step of a deep transformer adds to what its process holds, at most."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, json.dumps(VIT), switch],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return int(done.stdout)


@pytest.mark.slow
def test_peak_memory_is_lower() -> None:
    without, with_ = peak("off"), peak("on")
    assert with_ < 0.6 * without, f"{with_} KiB of {without} KiB"


def test_a_trunk_that_cannot_says_so() -> None:
    with pytest.raises(InputError, match="leave it off"):
        Encoder(EncoderSpec("legacy_xception")).checkpoint_gradients()
