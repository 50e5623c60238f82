"""The recipes of the methods that compare views: strict settings, and a step of the small ones."""

from __future__ import annotations

import pytest
import torch
from joint_cases import OPTIONS, seeded_views

from distill.objectives.protocol import objective
from distill.pretraining import RECIPES, build_encoder, read_options, read_settings


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_the_recipe_is_read_as_written(method):
    settings = read_settings(method, None, [])
    assert settings.method == method
    read_options(objective(method), settings.options)


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_the_recipe_for_small_images_trains(method):
    settings = read_settings(None, RECIPES / "small" / f"{method}.yaml", [])
    assert settings.method == method and settings.size == (32, 32)
    cls = objective(method)
    model = cls(build_encoder(settings, None), read_options(cls, settings.options))
    model.begin_step(0.0)
    loss = model(seeded_views(model, settings.size))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
