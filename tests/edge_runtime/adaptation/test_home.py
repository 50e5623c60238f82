"""What a bundle tells of its training domain."""

from __future__ import annotations

import io

import numpy as np
import pytest

from edge_runtime.adaptation.home import Home
from edge_runtime.bundle import Bundle, update_bundle
from edge_runtime.errors import BundleError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception


def test_objects_are_those_that_perception_finds(adaptive_bundle: Bundle) -> None:
    with np.load(adaptive_bundle.file("canary.npz")) as canary:
        images = canary["images"]
    perception = Perception(adaptive_bundle, threads=1)
    found = [perception(Frame(image, 0, "")).detections for image in images]
    counted = np.mean([len(one) for one in found if one is not None])
    assert counted > 0 and Home.of(adaptive_bundle).objects == counted


def with_boxes(bundle: Bundle, boxes: np.ndarray | None) -> Bundle:
    with np.load(bundle.file("canary.npz")) as canary:
        arrays = {name: canary[name] for name in canary if name != "expected_boxes"}
    if boxes is not None:
        arrays["expected_boxes"] = boxes
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return update_bundle(bundle, {"canary.npz": buffer.getvalue()})


def test_a_bundle_need_not_tell_of_objects(adaptive_bundle: Bundle) -> None:
    assert Home.of(with_boxes(adaptive_bundle, None)).objects is None


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 4), (2, 1, 4)])
def test_boxes_that_do_not_belong_to_the_frames_are_an_error(
    adaptive_bundle: Bundle, shape: tuple[int, ...]
) -> None:
    with pytest.raises(BundleError, match="its boxes cannot be read"):
        Home.of(with_boxes(adaptive_bundle, np.ones(shape, np.float32)))


@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
def test_a_damaged_reference_is_an_error(adaptive_bundle: Bundle, content: bytes) -> None:
    changed = update_bundle(adaptive_bundle, {"reference.safetensors": content})
    with pytest.raises(BundleError, match="cannot be read"):
        Home.of(changed)
