"""What a consolidated network has to show, number by number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_runtime.adaptation.consolidation.acceptance import (
    AcceptanceLimits,
    KeptOut,
    Measured,
    judge,
    measure,
)

OLD = Measured(
    canary_miou=0.7,
    canary_boxes=0.6,
    canary_objects=40,
    looks_miou=0.4,
    agreement=0.90,
    histogram=np.array([0.5, 0.3, 0.2]),
    detections=3.0,
    canary_detections=3.0,
    finite=True,
)
NEW = replace(OLD, looks_miou=0.45, agreement=0.93)


def test_better_at_the_place_and_as_good_at_home_is_accepted() -> None:
    verdict = judge(OLD, NEW, AcceptanceLimits())
    assert verdict.accepted and not verdict.reasons


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"canary_miou": 0.67}, "the canary's mean IoU"),
        ({"canary_boxes": 0.5}, "objects found"),
        ({"looks_miou": 0.39}, "adapting does as much"),
        ({"agreement": 0.87}, "agreement with mirror images"),
        ({"agreement": None}, "agreement with mirror images"),
        ({"agreement": float("nan")}, "agreement with mirror images"),
        ({"histogram": np.array([0.0, 0.0, 1.0])}, "class"),
        ({"detections": 30.0}, "objects"),
        ({"finite": False}, "not finite"),
    ],
)
def test_one_thing_against_it_is_enough(changed: dict, said: str) -> None:
    verdict = judge(OLD, replace(NEW, **changed), AcceptanceLimits())
    assert not verdict.accepted and len(verdict.reasons) == 1
    assert said in verdict.reasons[0]


def test_objects_and_classes_of_the_place_are_those_found_under_the_adapter() -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    adapter = np.array([2.0, 0.0], np.float32)

    def run(_image: np.ndarray, given: np.ndarray | None) -> dict[str, np.ndarray]:
        """A network that sees nothing at the place as trained, and one object when adapted."""
        seen = given is adapter
        return {
            "boxes": np.array([[1, 1, 9, 9]], np.float32),
            "scores": np.array([0.9 if seen else 0.0], np.float32),
            "labels": np.zeros(1, np.int32),
            "mask": np.full((8, 8), int(seen), np.uint8),
        }

    kept = KeptOut(frames, None, None, frames, classes=2)
    adapted, trained = measure(run, kept, adapter), measure(run, kept)
    assert (adapted.detections, trained.detections) == (1.0, 0.0)
    assert adapted.histogram is not None and trained.histogram is not None
    assert list(adapted.histogram) == [0, 1] and list(trained.histogram) == [1, 0]
