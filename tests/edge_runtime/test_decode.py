from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.decode import decode_detections, decode_segmentation, suppress
from edge_runtime.geometry import Geometry

SAME = Geometry((100, 100), (100, 100))


def outputs(boxes: list, scores: list, labels: list) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels, np.int32),
    }


def iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**31), st.sampled_from([0.3, 0.6, 0.9]))
def test_suppression_equals_the_textbook(count: int, seed: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    corner = random.uniform(-40, 30, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 30, (count, 2))], 1)
    boxes = boxes.astype(np.float32)
    scores = random.uniform(0.1, 1, count).astype(np.float32)
    labels = random.integers(0, 3, count, dtype=np.int32)
    kept: list[int] = []
    for index in np.argsort(-scores).tolist():
        rivals = [k for k in kept if labels[k] == labels[index]]
        if all(iou(boxes[k], boxes[index]) <= threshold for k in rivals):
            kept.append(index)
    assert suppress(boxes, scores, labels, threshold).tolist() == kept


def test_lesser_boxes_go_only_within_their_class() -> None:
    same = [10, 10, 30, 30]
    found = decode_detections(outputs([same] * 3, [0.5, 0.9, 0.8], [0, 0, 1]), SAME)
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_allclose(found.scores, [0.9, 0.8])
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (
        np.float32,
        np.float32,
        np.int32,
    )


def test_thresholds_limits_and_unsound_boxes() -> None:
    raw = outputs(
        [[0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 39, 49], [np.nan, 0, 9, 9], [200, 5, 210, 9]],
        [0.9, 0.2, 0.8, 0.8, 0.8],
        [0] * 5,
    )
    assert len(decode_detections(raw, SAME, 0.3)) == 1
    assert len(decode_detections(raw, SAME, 0.1)) == 2
    assert len(decode_detections(raw, SAME, 0.1, max_detections=1)) == 1
    none = decode_detections(raw, SAME, 0.95)
    assert none.boxes.shape == (0, 4) and none.scores.shape == (0,) and none.labels.shape == (0,)


def test_boxes_arrive_in_raw_pixels_within_the_image() -> None:
    geometry = Geometry((200, 400), (100, 100))
    found = decode_detections(outputs([[-5, 10, 50, 120]], [0.9], [0]), geometry)
    np.testing.assert_allclose(found.boxes, [[0, 20, 200, 200]])


def test_results_are_copies() -> None:
    raw = outputs([[0, 0, 9, 9]], [0.9], [1])
    raw["mask"] = np.ones((100, 100), np.uint8)
    raw["mask_confidence"] = np.ones((100, 100), np.float16)
    found, segmentation = decode_detections(raw, SAME), decode_segmentation(raw, SAME)
    for array in raw.values():
        array[:] = 0
    assert found.scores[0] == pytest.approx(0.9) and found.labels[0] == 1 and found.boxes[0, 2] == 9
    assert segmentation.mask.all()
    assert segmentation.confidence is not None and segmentation.confidence.dtype == np.float32
    assert segmentation.confidence.all()
