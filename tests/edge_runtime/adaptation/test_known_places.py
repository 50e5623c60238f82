"""Places that a bundle brings along: used at once, and refused where the file is no good."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from colours import World
from safetensors.numpy import save

from edge_runtime.adaptation.known_places import FILE, known_places, packed
from edge_runtime.bundle import Bundle, open_bundle, update_bundle
from edge_runtime.errors import BundleError

SIGNATURE, ADAPTER = np.arange(6, dtype=np.float32), np.arange(12, dtype=np.float32)


def with_places(world: World, folder: Path, content: bytes) -> Bundle:
    path = folder / "knowing.bundle"
    shutil.copytree(world.bundle.path, path)
    return update_bundle(open_bundle(path), {FILE: content})


def test_a_bundle_gives_back_the_places_it_was_given(world: World, tmp_path: Path) -> None:
    assert known_places(world.bundle) == []
    bundle = with_places(world, tmp_path, packed([(SIGNATURE, ADAPTER), (-SIGNATURE, -ADAPTER)]))
    places = known_places(bundle)
    assert len(places) == 2
    np.testing.assert_array_equal(places[1][0], -SIGNATURE)
    np.testing.assert_array_equal(places[1][1], -ADAPTER)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (packed([(SIGNATURE, ADAPTER)])[:-5], "cannot be read"),
        (save({"signatures": SIGNATURE[None]}), "'adapters' is absent"),
        (packed([(SIGNATURE[:4], ADAPTER)]), r"expected float32 \(places, 6\)"),
        (save({"signatures": SIGNATURE[None], "adapters": ADAPTER[None].astype("f8")}), "float64"),
        (packed([(SIGNATURE, ADAPTER * np.float32(np.nan))]), "not finite"),
        (packed([(SIGNATURE, ADAPTER)] * 65), "at most 64"),
        (save({"signatures": SIGNATURE[None], "adapters": np.stack([ADAPTER] * 2)}), "as many"),
    ],
)
def test_a_file_that_is_no_good_is_named(
    content: bytes, says: str, world: World, tmp_path: Path
) -> None:
    bundle = with_places(world, tmp_path, content)
    with pytest.raises(BundleError, match=says):
        known_places(bundle)
