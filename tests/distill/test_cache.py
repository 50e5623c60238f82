"""Cached teacher features: what comes out is what the teacher gave, and broken caches are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.data.cache import CachedViews, FeatureCache
from distill.data.views import UnlabelledViews
from distill.settings import DistillSettings
from edge_runtime.datasets import open_data
from edge_runtime.errors import InputError

SIZE = (32, 48)


def teacher(images):
    """Twice-pooled colours as dense features, their mean as pooled ones."""
    x = images.permute(0, 3, 1, 2).float() / 255
    return [(torch.nn.functional.avg_pool2d(x, 8), x.mean(dim=(2, 3)))]


@pytest.fixture
def made(tiny, tmp_path):
    settings = DistillSettings(size=SIZE, epochs=4, views=2)
    views = UnlabelledViews([open_data(str(tiny.yaml))], settings, seed=3)
    steps = []
    cache = FeatureCache.build(tmp_path / "c", views, SIZE, 2, teacher, steps.append, batch=3)
    assert sum(steps) == 2 * len(views)
    return settings, views, cache


def test_cached_features_are_the_teachers_on_the_same_view(made):
    settings, views, cache = made
    item = CachedViews({SIZE: cache}, settings, 3)[(3, 1)]
    view = views.view(3 % 2, 1, SIZE)
    dense, pooled = teacher(torch.from_numpy(view)[None])[0]
    torch.testing.assert_close(item["dense_0"].float(), dense[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(item["pooled_0"].float(), pooled[0], atol=1e-3, rtol=0)
    assert item["image"].shape == (*SIZE, 3)


def test_a_complete_cache_never_asks_the_teacher_again(made):
    _, views, cache = made

    def refuse(_images):
        raise AssertionError("the teacher ran")

    again = FeatureCache.build(cache.folder, views, SIZE, 2, refuse, lambda _n: None)
    np.testing.assert_array_equal(again.images, cache.images)


def test_an_interrupted_build_leaves_nothing_that_counts(tiny, tmp_path):
    settings = DistillSettings(size=SIZE, views=2)
    views = UnlabelledViews([open_data(str(tiny.yaml))], settings, seed=0)

    def fail(_images):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        FeatureCache.build(tmp_path / "c", views, SIZE, 2, fail, lambda _n: None)
    assert not (tmp_path / "c").exists()
    assert FeatureCache.build(tmp_path / "c", views, SIZE, 2, teacher, lambda _n: None).count == 2


@pytest.mark.parametrize("name", ["views.npy", "dense_0.npy", "done.json"])
@pytest.mark.parametrize("content", ["", "half", "zeros"])
def test_broken_caches_are_named(made, name, content):
    _, views, cache = made
    path = cache.folder / name
    whole = path.read_bytes()
    path.write_bytes({"": b"", "half": whole[: len(whole) // 2], "zeros": b"\0" * 64}[content])
    with pytest.raises(InputError, match="delete it"):
        FeatureCache(cache.folder, len(views), 2)
