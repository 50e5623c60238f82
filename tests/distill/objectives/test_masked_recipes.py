"""The recipes of pretext and masked methods: they fit their trunks, and the small ones step."""

from __future__ import annotations

import pytest
import torch
from objective_helpers import views_of

from distill.objectives.protocol import objective
from distill.pretraining import RECIPES, build_encoder, read_options, read_settings

METHODS = ["colorization", "inpainting", "jigsaw", "mae", "rotation", "simmim", "slotmim"]
# Trunks with the same cells as those of the recipes, but quick to build.
ALIKE = {"resnet50": "resnet18", "vit_base_patch16_224": "vit_tiny_patch16_224"}


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_makes_views_for_its_trunk(method):
    asked = read_settings(method, None, [])
    settings = read_settings(method, None, [f"encoder={ALIKE[asked.encoder]}"])
    cls = objective(method)
    options = read_options(cls, settings.options)
    view = cls.views(options, settings.size, build_encoder(settings, None))
    parts = view(torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8))
    assert parts[0].shape[-3] == 3 and torch.isfinite(parts[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_for_small_images_trains(method):
    settings = read_settings(None, RECIPES / "small" / f"{method}.yaml", [])
    assert settings.method == method and settings.size == (32, 32)
    cls = objective(method)
    model = cls(build_encoder(settings, None), read_options(cls, settings.options))
    model.begin_step(0.0)
    loss = model(views_of(model))["loss"]
    loss.backward()
    model.end_step(0.1)
    assert torch.isfinite(loss)
    assert any(p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.grad is not None)
