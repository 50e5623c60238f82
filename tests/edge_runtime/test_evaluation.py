"""mIoU against hand-computed values, average precision against perfect and empty detectors."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.datasets import Dataset, load_dataset
from edge_runtime.errors import InputError
from edge_runtime.evaluation import average_precision, class_iou, confusion, evaluate, miou
from edge_runtime.frames import Detections, Frame, Result, Segmentation


class FakePerception:
    """Answers from the labels, spoiled by `change`."""

    def __init__(self, dataset: Dataset, change: str = "") -> None:
        self.dataset, self.change = dataset, change
        self.score_threshold = 0.3
        self.seen: list[float] = []

    def classes(self, task: str) -> list[str]:
        if task == "segmentation":
            return list(self.dataset.segmentation_classes or [])
        names = list(self.dataset.detection_classes or [])
        return names[::-1] if self.change == "names" else names

    def __call__(self, frame: Frame) -> Result:
        self.seen.append(self.score_threshold)
        labels = self.dataset.read(frame.stamp_ns)
        boxes, classes = labels.boxes.copy(), labels.labels
        if self.change == "empty":
            boxes, classes = boxes[:0], classes[:0]
        if self.change == "shifted":  # IoU (1 - 0.4) / (1 + 0.4) = 0.43
            boxes[:, [0, 2]] += 0.4 * (boxes[:, 2:3] - boxes[:, :1])
        mask = None
        if labels.mask is not None and self.change != "boxes only":
            mask = Segmentation(np.where(labels.mask == 9, 0, labels.mask).astype(np.uint8))
        found = Detections(boxes, np.full(len(boxes), 0.9, np.float32), classes)
        return Result(frame.stamp_ns, frame.frame_id, found, mask, None)


def test_miou_by_hand():
    label = np.array([[0, 0, 1, 1], [2, 2, 9, 1]])
    found = np.array([[0, 1, 1, 1], [2, 0, 0, 1]])
    matrix = confusion(found, label, 4, ignore=9)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 3, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    ious = class_iou(matrix)
    assert ious[:3] == pytest.approx([1 / 3, 3 / 4, 1 / 2])
    assert np.isnan(ious[3])
    assert miou(matrix) == pytest.approx((1 / 3 + 3 / 4 + 1 / 2) / 3)


def test_ignored_class_within_the_list_is_not_judged():
    matrix = confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), 2, ignore=0)
    assert matrix.tolist() == [[0, 0], [0, 1]]
    assert miou(matrix, ignore=0) == 1.0


def test_predicted_but_absent_class_counts_as_zero():
    assert miou(confusion(np.array([1, 0]), np.array([0, 0]), 2)) == pytest.approx(0.25)


def test_pixels_out_of_view_are_left_out():
    assert confusion(np.array([255, 1]), np.array([0, 1]), 2).sum() == 1


def test_nothing_judged_is_nan():
    assert np.isnan(miou(np.zeros((3, 3), int)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)


def test_perfect_perception(tiny):
    dataset = load_dataset(tiny.yaml)
    perception = FakePerception(dataset)
    figures = evaluate(perception, dataset, progress=False, per_image=True)
    assert figures["segmentation"]["miou"] == 1.0
    assert figures["segmentation"]["coverage"] == 1.0
    assert list(figures["segmentation"]["iou"]) == ["floor", "wall", "thing"]
    for key in ("map", "map_50", "ap_30"):
        assert figures["detection"][key] == pytest.approx(1.0)
    assert figures["frames"] == 2
    assert figures["per_image"].shape == (2, 3, 3)
    assert perception.seen == [0.0, 0.0]
    assert perception.score_threshold == 0.3


def test_empty_detector_scores_zero(tiny):
    dataset = load_dataset(tiny.yaml)
    figures = evaluate(FakePerception(dataset, "empty"), dataset, progress=False)
    assert figures["detection"]["map"] == 0.0
    assert figures["detection"]["ap_30"] == 0.0


def test_loose_boxes_count_only_at_low_iou(tiny):
    dataset = load_dataset(tiny.yaml)
    figures = evaluate(FakePerception(dataset, "shifted"), dataset, progress=False)
    assert figures["detection"]["ap_30"] == pytest.approx(1.0)
    assert figures["detection"]["map_50"] == 0.0


def test_no_objects_gives_none():
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}
    assert average_precision(truth, [])["map"] is None


def test_limit_spreads_and_keeps_to_the_judged_images(tiny):
    dataset = load_dataset(tiny.yaml)
    figures = evaluate(FakePerception(dataset), dataset, limit=1, progress=False)
    assert figures["frames"] == 1
    assert figures["detection"]["map"] == pytest.approx(1.0)


def test_other_classes_are_refused(tiny):
    dataset = load_dataset(tiny.yaml)
    with pytest.raises(InputError, match="classes are \\['cone', 'box'\\]"):
        evaluate(FakePerception(dataset, "names"), dataset, progress=False)


def test_unlabelled_data_is_refused(tiny):
    tiny.text = "name: tiny\nsplits:\n  all: {images: images}\n"
    tiny.write()
    dataset = load_dataset(tiny.yaml)
    with pytest.raises(InputError, match="has no labels"):
        evaluate(FakePerception(dataset), dataset, progress=False)


def test_limit_below_one_is_refused(tiny):
    dataset = load_dataset(tiny.yaml)
    with pytest.raises(InputError, match="at least 1"):
        evaluate(FakePerception(dataset), dataset, limit=0, progress=False)
