"""Results image by image: the metrics are the evaluation's, and broken files are named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distill.cli import main
from distill.evaluation.per_image import PerImage, read_per_image, write_per_image
from distill.evaluation.recording import judge
from distill.evaluation.scores import match_boxes
from edge_runtime.datasets import open_data
from edge_runtime.errors import InputError
from edge_runtime.evaluation import IOU_THRESHOLDS, average_precision, coco_results, evaluate
from edge_runtime.frames import Detections, Result, Segmentation


class Guesser:
    """Sees the labels through noise: what it finds is known, and neither perfect nor nothing."""

    def __init__(self, dataset, noise, seed):
        self.dataset, self.noise = dataset, noise
        self.rng = np.random.default_rng(seed)
        self.score_threshold = 0.5

    def classes(self, task):
        names = {
            "segmentation": self.dataset.segmentation_classes,
            "detection": self.dataset.detection_classes,
        }
        return names[task]

    def __call__(self, frame):
        truth = self.dataset.read(frame.stamp_ns)
        rng = self.rng
        mask = truth.mask.copy()
        wrong = rng.random(mask.shape) < self.noise
        mask[wrong] = rng.integers(0, len(self.dataset.segmentation_classes), wrong.sum())
        boxes = np.repeat(truth.boxes, 2, 0)
        size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
        boxes += rng.normal(0, self.noise, boxes.shape) * np.hstack([size, size])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.repeat(truth.labels, 2)
        lost = rng.random(len(labels)) < self.noise
        labels[lost] = (labels[lost] + 1) % len(self.dataset.detection_classes)
        scores = rng.random(len(labels)).round(2).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        found = Detections(boxes[order].astype(np.float32), scores[order], labels[order])
        return Result(frame.stamp_ns, frame.frame_id, found, Segmentation(mask), None)


@pytest.fixture(scope="module")
def judged(camvid):
    data = open_data(f"{camvid}:val")
    return data, *judge(Guesser(data, 0.2, 0), data, 30, progress=False)


def test_every_metric_is_the_evaluations(judged):
    data, figures, results = judged
    same = evaluate(Guesser(data, 0.2, 0), data, 30, progress=False)
    assert figures == same
    whole = np.ones((1, 30))
    value = {
        m: float(results.scores(m).value(whole)[0]) for m in ("miou", "map", "map_50", "ap_30")
    }
    assert value["miou"] == pytest.approx(figures["segmentation"]["miou"])
    for name in ("map", "map_50", "ap_30"):
        assert 0.05 < figures["detection"][name] < 0.95
        assert value[name] == pytest.approx(figures["detection"][name], abs=1e-9), name


def test_a_weight_of_two_is_the_image_twice_and_of_zero_its_absence(judged):
    data, _, results = judged
    model = Guesser(data, 0.2, 0)
    truth, found = data.coco, []
    names = results.images["detection"]
    stems = [s.stem for s in data.samples]
    weights = np.random.default_rng(1).integers(0, 3, (1, 30))
    images, annotations = [], []
    from edge_runtime.frames import Frame

    for weight, name in zip(weights[0], names, strict=True):
        index = stems.index(name)
        seen = model(Frame(data.read(index).image, index, name)).detections
        own = data.samples[index].image_id
        for _ in range(weight):
            copy = len(images) + 1
            images.append({"id": copy, "file_name": name, "width": 480, "height": 360})
            for entry in truth["annotations"]:
                if entry["image_id"] == own:
                    annotations.append({**entry, "image_id": copy, "id": len(annotations) + 1})
            found += coco_results(seen, copy, data.category_ids)
    drawn = {"images": images, "annotations": annotations, "categories": truth["categories"]}
    expected = average_precision(drawn, found)
    for name in ("map", "map_50", "ap_30"):
        value = float(results.scores(name).value(weights)[0])
        assert value == pytest.approx(expected[name], abs=2e-3), name  # ties in score


def test_matching_prefers_objects_over_crowds_and_takes_each_object_once():
    found = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 4, 4.0]])
    truth = np.array([[40, 40, 30, 30], [0, 0, 10, 9.0]])
    hit, spared = match_boxes(found, truth, np.array([True, False]))
    at_half = int(np.flatnonzero(IOU_THRESHOLDS == 0.5)[0])
    assert hit[:, at_half].tolist() == [True, False, False]
    assert spared[:, at_half].tolist() == [False, False, True]
    assert not hit[:, -1].any()  # IoU 0.9 < 0.95
    empty = match_boxes(np.zeros((0, 4)), truth, np.array([True, False]))
    assert empty[0].shape == (0, len(IOU_THRESHOLDS))


def test_what_is_written_is_read_back(judged, tmp_path):
    _, _, results = judged
    write_per_image(tmp_path / "per_image.npz", results)
    again = read_per_image(tmp_path)
    assert (again.images, again.data, again.classes) == (
        results.images, results.data, results.classes)  # fmt: skip
    for task, arrays in results.arrays.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again.arrays[task][name], array)


def small() -> PerImage:
    return PerImage(
        {"name": "d", "split": "val", "digest": "0"},
        {"classification": ["a", "b", "c"]},
        {"classification": {"label": np.array([0, 1, 1]), "predicted": np.array([0, 1, 0])}},
        {"classification": ["x", "y"]},
    )


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "r.npz"
    with pytest.raises(InputError, match="evaluate"):
        read_per_image(path)
    write_per_image(path, small())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for end in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"r\.npz"):
            read_per_image(path)
    for _ in range(150):
        spoiled = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            spoiled[at] = rng.integers(256)
        path.write_bytes(spoiled)
        try:
            read_per_image(path)
        except InputError:
            pass  # anything else would be a crash on hostile content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.arrays["classification"].update(label=np.array([0, 1])), "expected"),
        (lambda r: r.arrays["classification"].update(predicted=np.array([0, 1, 2])), "outside"),
        (lambda r: r.arrays["classification"].update(label=np.array([0.0, 1, 1])), "expected"),
        (lambda r: r.images.clear(), "no results"),
        (lambda r: r.images.update(flying=["a"]), "unknown task"),
    ],
)
def test_contradictory_content_is_refused(tmp_path, change, message):
    results = small()
    change(results)
    write_per_image(tmp_path / "per_image.npz", results)
    with pytest.raises(InputError, match=message):
        read_per_image(tmp_path)


def test_pickled_content_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "per_image.npz", about=np.array([Bomb()], dtype=object))
    with pytest.raises(InputError, match="not a readable"):
        read_per_image(tmp_path)
    assert not (tmp_path / "exploded").exists()


def arm(folder, accuracy, rng, seeds=3, names=None):
    """Seeds of an arm that classifies 200 images."""
    label = np.arange(200) % 2
    for seed in range(seeds):
        right = rng.random(200) < accuracy
        results = PerImage(
            {"name": "d", "split": "val", "digest": "0"},
            {"classification": names or [f"i{k}" for k in range(200)]},
            {"classification": {"label": label, "predicted": np.where(right, label, 1 - label)}},
            {"classification": ["x", "y"]},
        )
        write_per_image(folder.parent / f"{folder.name}-{seed}" / "per_image.npz", results)
    return str(folder) + "-*"


def test_the_command_compares_all_pairs_of_arms(tmp_path, command_line):
    rng = np.random.default_rng(0)
    runs = [arm(tmp_path / n, p, rng) for n, p in (("a", 0.6), ("b", 0.75), ("c", 0.76))]
    out = tmp_path / "compare.json"
    code, said, _ = command_line(
        main, "fieldsight-distill", "compare", *runs, "--resamples", 500, "--json", out
    )
    assert code == 0 and "two-sided" in said and "Holm" in said
    pairs = json.loads(out.read_text())["metrics"]["accuracy"]
    assert [(p["a"], p["b"]) for p in pairs] == [
        (runs[0], runs[1]), (runs[0], runs[2]), (runs[1], runs[2])]  # fmt: skip
    assert pairs[0]["images"]["p_permutation"] < 0.01 and len(pairs[0]["a_by_seed"]) == 3
    assert pairs[2]["images"]["p_permutation"] > 0.05
    assert all(p["p_holm"] >= p["images"]["p_permutation"] for p in pairs)


def test_the_command_refuses_what_does_not_pair_up(tmp_path, command_line):
    rng = np.random.default_rng(0)
    a = arm(tmp_path / "a", 0.6, rng)
    two = arm(tmp_path / "two", 0.6, rng, seeds=2)
    other = arm(tmp_path / "other", 0.6, rng, names=[f"j{k}" for k in range(200)])
    for words, message in (
        ([a], "give two at least"),
        ([a, a], "given twice"),
        ([a, two], "as many"),
        ([a, other], "same images"),
        ([a, str(tmp_path / "none-*")], "matches nothing"),
        ([a, str(tmp_path)], "fieldsight-distill evaluate"),
        ([a, other, "--metric", "miou"], "judged on segmentation"),
        ([a, other, "--metric", "speed"], "there are miou"),
    ):
        code, _, said = command_line(main, "fieldsight-distill", "compare", *words)
        assert code == 2 and message in " ".join(said.split()), (words, said)
