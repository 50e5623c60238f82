"""Evidence for and against an adapter, read off real results and the canary."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge_runtime.adaptation.canary import Canary, canary_of
from edge_runtime.adaptation.evidence import (
    Evidence,
    class_shares,
    histogram_distance,
    mirror_agreement,
    mirror_pass,
)
from edge_runtime.adaptation.guard import Guard
from edge_runtime.bundle import Bundle, identity_adapter, update_bundle
from edge_runtime.errors import BundleError
from edge_runtime.frames import Frame, Result, Segmentation
from edge_runtime.perception import Perception

IDENTITY = np.array([1, 1, 1, 0, 0, 0], np.float32)


def test_evidence_is_read_off_real_results(adaptive_bundle: Bundle) -> None:
    """The tiny network says the strongest channel: red on the left, green on the right."""
    perception = Perception(adaptive_bundle)
    image = np.zeros((96, 128, 3), np.uint8)
    image[:, :, 0], image[:, 64:, 1] = 100, 200
    frame = Frame(image, 1, "camera")
    straight, mirrored = perception(frame), mirror_pass(perception, frame)
    assert mirror_agreement(straight, mirrored) == pytest.approx(1, abs=0.05)
    assert mirror_agreement(straight, straight) == pytest.approx(0, abs=0.05)
    evidence = Evidence.of(straight, 3, mirrored)
    assert evidence.histogram == pytest.approx([0.5, 0.5, 0], abs=0.02)
    assert evidence.finite and evidence.detections == 2 and evidence.confidence is None
    guard = Guard(adaptive_bundle)
    summed = guard.outcome(IDENTITY, [evidence, evidence])
    assert summed.frames == 2 == summed.detections
    assert summed.class_distance is not None and 0 < summed.class_distance < 1
    broken = dataclasses.replace(straight, statistics=np.full(6, np.inf, np.float32))
    assert not Evidence.of(broken, 3).finite


def test_what_lies_behind_something_black_agrees_with_nothing() -> None:
    """The left half is covered; classes agree there by guessing, and elsewhere on one half."""
    image = np.full((40, 80, 3), 90, np.uint8)
    image[:, :40] = 0
    mask = np.zeros((40, 80), np.uint8)
    turned = mask.copy()
    turned[:, :20] = 1  # the right quarter of the frame, seen in the mirror
    one, other = (Result(0, "c", None, Segmentation(m), None) for m in (mask, turned))
    assert mirror_agreement(one, other) == 0.75
    assert mirror_agreement(one, other, Frame(image, 0, "c")) == 0.5
    assert mirror_agreement(one, other, Frame(image * 0, 0, "c")) is None
    assert Evidence.of(one, 3, other, Frame(image, 0, "c")).agreement == 0.5


def test_pixels_beyond_the_view_are_no_class() -> None:
    mask = np.full((40, 40), 255, np.uint8)
    assert class_shares(mask, 3).tolist() == [0, 0, 0]
    mask[:, :20] = 1
    assert class_shares(mask, 3).tolist() == [0, 1, 0]
    none = dataclasses.replace(Result(0, "camera", None, None, None), segmentation=None)
    assert mirror_agreement(none, none) is None and Evidence.of(none, 3).histogram is None


def test_histogram_distance_is_a_distance() -> None:
    one, other = np.array([0.5, 0.5, 0]), np.array([0, 0, 3.0])
    assert histogram_distance(one, 10 * one) == 0
    assert histogram_distance(one, other) == 1
    assert histogram_distance(one, other + one) == histogram_distance(other + one, one)


def test_the_canary_under_an_adapter(adaptive_bundle: Bundle) -> None:
    """Labels that are what the network gives, so that the identity keeps all of them."""
    perception = Perception(adaptive_bundle)
    passes = []

    def run(image: np.ndarray, adapter: np.ndarray):
        passes.append(image.shape)
        return perception.engine.infer({"image": image, "adapter": adapter})

    canary = Canary(adaptive_bundle)
    whole = canary.run(run, identity_adapter(adaptive_bundle.manifest), frames=9)
    assert whole.frames == len(passes) == len(canary) == 2
    assert whole.miou == whole.miou_as_trained == whole.boxes_found == whole.kept == 1
    blind = canary.run(run, np.array([0, 0, 0, 0, 1, 0], np.float32), frames=1)
    assert blind.frames == 1 and blind.kept < 0.3
    broken = canary.run(lambda image, adapter: {"scores": np.full(4, np.nan)}, IDENTITY)
    assert not broken.finite and broken.kept == 0


def test_a_borrowed_perception_is_given_back_as_it_was(adaptive_bundle: Bundle) -> None:
    perception = Perception(adaptive_bundle)
    perception.adapter = np.array([0, 0, 1, 0, 0, 1], np.float32)  # all is blue
    frame = Frame(np.full((48, 64, 3), 90, np.uint8), 0, "camera")
    before = perception(frame)
    test = canary_of(perception)
    assert test is not None
    assert test(IDENTITY).kept == 1 and test(np.array([0, 0, 0, 0, 1, 0])).kept < 0.3
    after = perception(frame)
    assert before.segmentation is not None and after.segmentation is not None
    assert (after.segmentation.mask == before.segmentation.mask).all()
    assert (after.segmentation.mask == 2).all()
    bare = update_bundle(adaptive_bundle, {"canary.npz": None})
    assert canary_of(Perception(bare)) is None


def test_a_bundle_without_canary_says_so(adaptive_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no canary.npz"):
        Canary(update_bundle(adaptive_bundle, {"canary.npz": None}))
