"""Datasets on disk: what is read, what is mended and counted, what is refused."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.datasets import load_dataset, open_data
from edge_runtime.errors import InputError


def test_reads_images_masks_and_boxes(tiny):
    dataset = load_dataset(f"{tiny.yaml}:all")
    assert (dataset.name, dataset.split, len(dataset)) == ("tiny", "all", 2)
    assert dataset.category_ids == [3, 7]  # classes follow the category id, not the file's order
    frame = dataset.read(0)
    assert np.array_equal(frame.image, tiny.images[0])
    assert np.array_equal(frame.mask, tiny.masks[0])
    assert frame.boxes.tolist() == [[2, 3, 12, 11], [16, 4, 24, 16]]
    assert frame.labels.tolist() == [1, 0]
    assert frame.boxes.dtype == np.float32 and frame.labels.dtype == np.int32
    assert not dataset.problems


def test_coco_of_a_subset_has_only_its_images(tiny):
    dataset = load_dataset(tiny.yaml)
    part = dataset.subset(1, seed=0)
    assert {i["id"] for i in part.coco["images"]} == {part.samples[0].image_id}
    assert {a["image_id"] for a in part.coco["annotations"]} == {part.samples[0].image_id}
    assert len(dataset.coco["annotations"]) == 3


def test_crowd_is_marked(tiny):
    tiny.coco["annotations"][1]["iscrowd"] = 1
    tiny.write()
    assert load_dataset(tiny.yaml).read(0).crowd.tolist() == [False, True]


@pytest.mark.parametrize(
    ("bbox", "left", "problem"),
    [
        ([-5, -5, 10, 10], [0, 0, 5, 5], "clipped"),
        ([30, 20, 50, 50], [30, 20, 32, 24], "clipped"),
        ([40, 3, 5, 5], None, "outside"),
        ([4, 4, 0, 5], None, "without area"),
        ([4, 4, -3, 5], None, "without area"),
        ([4, 4, float("nan"), 5], None, "without area"),
    ],
)
def test_bad_boxes_are_mended_and_counted(tiny, bbox, left, problem):
    tiny.coco["annotations"][0]["bbox"] = bbox
    tiny.write()
    dataset = load_dataset(tiny.yaml)
    boxes = dataset.read(0).boxes.tolist()
    assert boxes == ([left] if left else []) + [[16, 4, 24, 16]]
    assert [count for name, count in dataset.problems.items() if problem in name] == [1]


def test_mask_of_another_size_is_refused(tiny):
    cv2.imwrite(str(tiny.mask), tiny.masks[0][:20])
    with pytest.raises(InputError, match="masks/a.png: 32x20 pixels, but its image has 32x24"):
        load_dataset(tiny.yaml).read(0)


def test_unknown_mask_index_is_refused(tiny):
    tiny.masks[0, 5, 5] = 3
    cv2.imwrite(str(tiny.mask), tiny.masks[0])
    with pytest.raises(InputError, match=r"class index 3, expected 0 to 2 or 9 \(ignored\)"):
        load_dataset(tiny.yaml).read(0)


def test_boxes_for_another_image_size_are_refused(tiny):
    tiny.coco["images"][0]["width"] = 64
    tiny.write()
    with pytest.raises(InputError, match="boxes are for 64x24"):
        load_dataset(tiny.yaml).read(0)


def test_broken_image_is_named(tiny):
    tiny.image.write_bytes(b"")
    with pytest.raises(InputError, match="images/a.png: the file is empty"):
        load_dataset(tiny.yaml).read(0)


def test_class_lists_must_agree(tiny):
    tiny.text = tiny.text.replace("[box, cone]", "[cone, box]")
    tiny.write()
    with pytest.raises(InputError, match="make them agree"):
        load_dataset(tiny.yaml)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_id", 99, "image_id 99"),
        ("category_id", 99, "category_id 99"),
        ("bbox", [1, 2, 3], "bbox of 4 numbers"),
        ("bbox", None, "bbox of 4 numbers"),
    ],
)
def test_contradicting_annotations_are_refused(tiny, key, value, message):
    tiny.coco["annotations"][1][key] = value
    tiny.write()
    with pytest.raises(InputError, match=message):
        load_dataset(tiny.yaml)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": []}', "\x00"])
def test_files_that_are_not_coco_are_refused(tiny, text):
    tiny.boxes.write_text(text)
    with pytest.raises(InputError, match="boxes.json"):
        load_dataset(tiny.yaml)


def test_image_listed_twice_is_refused(tiny):
    tiny.coco["images"].append(tiny.coco["images"][0])
    tiny.write()
    with pytest.raises(InputError, match="twice"):
        load_dataset(tiny.yaml)


def test_images_without_labels_are_counted(tiny):
    (tiny.root / "masks" / "b.png").unlink()
    tiny.coco["images"].append({"id": 8, "file_name": "gone.png", "width": 3, "height": 3})
    tiny.write()
    cv2.imwrite(str(tiny.root / "images" / "c.png"), tiny.images[0])
    dataset = load_dataset(tiny.yaml)
    assert [s.stem for s in dataset.samples] == ["a", "b"]
    assert dataset.read(1).mask is None
    assert dict(dataset.problems) == {
        "images without mask": 2,
        "images the box file does not list, left out": 1,
        "images listed but not there": 1,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("segmentation:", "segmentatoin:", "did you mean 'segmentation'"),
        ("ignore_index: 9", "ignore_index: 400", "less than or equal to 255"),
        ("classes: [box, cone]", "classes: [box, no]", "valid string"),
        ("images: images", "images: nowhere", "no such folder of images"),
        ("masks: masks", "masks: nowhere", "no such folder of masks"),
        ("boxes.json", "nowhere.json", "no such file of boxes"),
        ("detection: {classes: [box, cone]}", "", "add 'detection"),
        ("name: tiny", "name: [", "not a readable YAML"),
        ("name: tiny\n", "", "'name' is missing"),
    ],
)
def test_bad_specs_are_refused(tiny, old, new, message):
    tiny.text = tiny.text.replace(old, new)
    tiny.write()
    with pytest.raises(InputError, match=message):
        load_dataset(tiny.yaml)


def test_empty_split_is_refused(tiny):
    for path in (tiny.root / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no images"):
        load_dataset(tiny.yaml)


def test_no_common_names_are_refused(tiny):
    for path in (tiny.root / "masks").iterdir():
        path.rename(path.with_stem(path.stem + "_label"))
    with pytest.raises(InputError, match="no mask has the name"):
        load_dataset(tiny.yaml)


def test_unknown_split_names_those_there_are(tiny):
    with pytest.raises(InputError, match="no split 'test'; add one of these after a colon: all"):
        load_dataset(f"{tiny.yaml}:test")


def test_plain_folder_is_unlabelled(tiny):
    (tiny.root / "images" / ".hidden.png").touch()
    dataset = open_data(str(tiny.root / "images"))
    frame = dataset.read(1)
    assert [s.stem for s in dataset.samples] == ["a", "b"]
    assert frame.mask is None and len(frame.boxes) == 0 and dataset.coco is None


def test_open_data_takes_yaml_folder_with_yaml_or_image(tiny):
    assert open_data(tiny.yaml, "train").split == "all"
    assert open_data(tiny.root).read(0).mask is not None
    assert len(open_data(tiny.image)) == 1
    with pytest.raises(InputError, match="no such file"):
        open_data(tiny.root / "nothing")
    with pytest.raises(InputError, match="expected a dataset.yaml"):
        open_data(tiny.boxes)


def test_digest_follows_content(tiny):
    before = load_dataset(tiny.yaml).digest()
    assert load_dataset(tiny.yaml).digest() == before
    tiny.coco["annotations"][0]["bbox"] = [2, 3, 10, 9]
    tiny.write()
    after = load_dataset(tiny.yaml).digest()
    assert after != before
    cv2.imwrite(str(tiny.image), 255 - tiny.images[0])
    assert load_dataset(tiny.yaml).digest() not in (before, after)


def test_subsets_nest_and_repeat(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(20):
        cv2.imwrite(str(folder / f"{i:02}.png"), np.zeros((4, 4), np.uint8))
    whole = open_data(folder)
    small, large = whole.subset("20%", seed=3), whole.subset(10, seed=3)
    assert (len(small), len(large)) == (4, 10)
    assert {s.stem for s in small.samples} < {s.stem for s in large.samples}
    assert small.samples == whole.subset("4", seed=3).samples
    assert small.samples != whole.subset("4", seed=4).samples
    for amount in ("0", "21", "0%", "101%", "-3", "many", "nan%", "", "1.5"):
        with pytest.raises(InputError):
            whole.subset(amount)


@given(st.lists(st.lists(st.floats(), min_size=4, max_size=4), max_size=8))
def test_any_box_ends_inside_its_image_or_is_counted(tmp_path_factory, boxes):
    from edge_runtime.coco import read_boxes

    path = tmp_path_factory.mktemp("coco") / "boxes.json"
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 50, "height": 40}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes],
        "categories": [{"id": 1, "name": "box"}],
    }
    path.write_text(json.dumps(content))
    found = read_boxes(path, ["box"])
    kept = found.boxes[1].xyxy
    dropped = sum(n for name, n in found.problems.items() if "dropped" in name)
    assert len(kept) + dropped == len(boxes)
    assert (kept >= 0).all() and (kept <= [50, 40, 50, 40]).all()
    assert (kept[:, 2:] >= kept[:, :2]).all()


def test_camvid(camvid):
    dataset = load_dataset(f"{camvid}:val")
    assert len(dataset) == 101
    frame = dataset.read(0)
    assert frame.mask.shape == frame.image.shape[:2] == (360, 480)
    assert len(frame.boxes) == len(frame.labels) > 0
