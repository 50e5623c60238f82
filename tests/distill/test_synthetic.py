"""Synthetic scenes: the same seed gives the same pixels, and labels are those of the pixels."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from distill.data.room import STYLES
from distill.data.scenes import (
    DETECTION_CLASSES,
    IGNORED,
    MIN_VISIBLE,
    SEGMENTATION_CLASSES,
    render_scene,
)
from distill.data.synthetic import iterate_scenes, parse_spec, render_dataset
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import InputError

SIZE = (96, 128)


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("style", STYLES)
def test_same_arguments_same_scene(style):
    first, second = (render_scene(STYLES[style], SIZE, 5, 3, 0) for _ in range(2))
    for name in ("image", "mask", "instances", "boxes", "labels", "areas"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("other", [(6, 3, 0), (5, 4, 0), (5, 3, 1)])
def test_seed_index_and_split_each_give_another_scene(other):
    first = render_scene(STYLES["workcell"], SIZE, 5, 3, 0)
    assert not np.array_equal(first.image, render_scene(STYLES["workcell"], SIZE, *other).image)


@pytest.mark.parametrize("style", STYLES)
def test_labels_are_those_of_the_pixels(style):
    for index in range(12):
        scene = render_scene(STYLES[style], SIZE, 1, index, 0)
        assert scene.image.shape == (*SIZE, 3) and scene.mask.shape == SIZE
        assert scene.instances.max(initial=0) == len(scene.boxes)
        for number, (box, label, area) in enumerate(
            zip(scene.boxes, scene.labels, scene.areas, strict=True), 1
        ):
            ys, xs = np.nonzero(scene.instances == number)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert area == len(ys) >= MIN_VISIBLE
            name = SEGMENTATION_CLASSES[int(scene.mask[ys[0], xs[0]])]
            assert name == DETECTION_CLASSES[label]
            assert (scene.mask[ys, xs] == SEGMENTATION_CLASSES.index(name)).all()
        background = scene.mask[scene.instances == 0]
        things = [SEGMENTATION_CLASSES.index(n) for n in DETECTION_CLASSES]
        assert not np.isin(background, things).any()


def test_every_class_occurs():
    seen: set[int] = set()
    for style in STYLES:
        scenes = itertools.islice(iterate_scenes(f"{style}?size=96x128"), 40)
        seen.update(*(np.unique(scene.mask).tolist() for scene in scenes))
    assert seen - {IGNORED} == set(range(len(SEGMENTATION_CLASSES)))


def test_dataset_is_readable_and_repeatable(tmp_path):
    spec = "workcell?train=4,val=2,unlabelled=2,size=96x128,seed=7"
    path = render_dataset(spec, tmp_path / "a", progress=False)
    render_dataset(spec, tmp_path / "b", progress=False)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    dataset = load_dataset(f"{path}:train")
    assert len(dataset) == 4 and not dataset.problems
    for index, scene in enumerate(iterate_scenes(spec, "train")):
        frame = dataset.read(index)
        assert np.array_equal(frame.mask, scene.mask)
        assert np.array_equal(frame.boxes, scene.boxes)
        assert np.array_equal(frame.labels, scene.labels)
        assert np.abs(frame.image.astype(int) - scene.image).mean() < 8
    assert len(load_dataset(f"{path}:val")) == 2
    assert load_dataset(f"{path}:unlabelled").read(0).mask is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]  # nothing temporary is left


def test_failed_rendering_leaves_what_was_there(tmp_path, monkeypatch):
    path = render_dataset("corridor?train=1,val=1,size=64x64", tmp_path / "a", progress=False)
    before = digests(path.parent)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("distill.data.synthetic._write", fail)
    with pytest.raises(OSError, match="disk full"):
        render_dataset("corridor?train=2,val=1,size=64x64", tmp_path / "a", progress=False)
    assert digests(path.parent) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        render_dataset("corridor?train=1,val=1", tmp_path, progress=False)
    with pytest.raises(InputError, match="is a file"):
        render_dataset("corridor?train=1,val=1", tmp_path / "thesis.txt", progress=False)


def test_spec_is_read():
    name, settings = parse_spec("corridor?train=3,size=48x64,seed=9")
    assert name == "corridor"
    assert (settings.train, settings.val, settings.height_width, settings.seed) == (
        3,
        60,
        (48, 64),
        9,
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("corridoor", "did you mean 'corridor'"),
        ("", "there are corridor, workcell"),
        ("workcell?trian=3", "did you mean 'train'"),
        ("workcell?train", "not KEY=VALUE"),
        ("workcell?train=", "not KEY=VALUE"),
        ("workcell?train=1,train=2", "twice"),
        ("workcell?train=0", "greater than or equal to 1"),
        ("workcell?train=many", "valid integer"),
        ("workcell?size=240", "size"),
        ("workcell?size=16x320", "too small"),
        ("workcell?seed=-1", "greater than or equal to 0"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        parse_spec(spec)


def test_unknown_split_is_refused():
    with pytest.raises(InputError, match="no split 'test'"):
        next(iterate_scenes("corridor", "test"))
