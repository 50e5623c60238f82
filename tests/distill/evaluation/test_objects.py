"""Object masks from prototypes and clusters, and their overlap with labelled regions."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from distill.cli import main
from distill.encoders import Encoder, EncoderSpec
from distill.evaluation.objective_run import open_objective
from distill.evaluation.objects import (
    ClusterGroups,
    PrototypeGroups,
    best_overlaps,
    connected,
    groups_of,
    mean_best_overlap,
    object_overlays,
)
from distill.objectives.slotmim import SlotMIM
from edge_runtime.datasets import Dataset, open_data
from edge_runtime.errors import InputError

TRUNK = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "output_stride": 8}
SPEC = EncoderSpec("resnet18", TRUNK)
OPTIONS = {"prototypes": 6, "hidden": 16, "width": 8, "blur": [0, 0]}


class Colours:
    """Groups cells by their mean colour: red, green, blue."""

    def scores(self, images):
        return torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), 4)


@pytest.fixture
def scene(tmp_path: Path) -> Dataset:
    """One 32x48 frame: a green square and a blue one on red, labelled 1 and 1 on 0."""
    image = np.zeros((32, 48, 3), np.uint8)
    mask = np.zeros((32, 48), np.uint8)
    image[..., 0] = 200
    image[8:24, 8:24], mask[8:24, 8:24] = (0, 200, 0), 1
    image[8:24, 28:44], mask[8:24, 28:44] = (0, 0, 200), 1
    mask[0, 0] = 9
    for folder, content in (("images", image[..., ::-1]), ("masks", mask)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), content)
    (tmp_path / "dataset.yaml").write_text(
        "name: scene\nsplits:\n  val: {images: images, masks: masks}\n"
        "segmentation: {classes: [floor, box], ignore_index: 9}\n"
    )
    return open_data(str(tmp_path / "dataset.yaml"), "val")


def test_regions_of_a_class_are_told_apart_and_ignored_ones_left_out():
    labels = np.array([[0, 0, 1, 1], [2, 0, 1, 3], [2, 2, 0, 3], [1, 2, 0, 3]])
    regions = connected(labels)
    assert regions.max() == 6 and (regions > 0).all()
    assert regions[0, 2] != regions[3, 0]
    assert len(np.unique(regions[labels == 0])) == 2
    without = connected(labels, ignore=2, least=3)
    assert sorted(np.bincount(without.ravel())[1:]) == [3, 3, 3]
    assert (without[labels == 2] == 0).all()


def test_the_best_overlap_of_a_region_is_over_all_masks():
    regions = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
    masks = np.array([[1, 1, 3, 3], [1, 2, 3, 3]])
    np.testing.assert_allclose(best_overlaps(masks, regions), [3 / 4, 2 / 4])
    np.testing.assert_allclose(best_overlaps(regions, regions), [1, 1])
    np.testing.assert_allclose(best_overlaps(np.zeros_like(masks), regions), [0, 0])
    assert len(best_overlaps(masks, np.zeros_like(regions))) == 0


def test_masks_of_the_objects_reach_full_overlap(scene):
    """Two boxes of one class are two regions; each is covered by a mask of its own."""
    assert mean_best_overlap(Colours(), scene, (32, 48)) > 0.8

    class Nothing(Colours):
        def scores(self, images):
            return super().scores(images)[:, :1]

    # One mask for everything covers the floor in part and the boxes hardly.
    assert mean_best_overlap(Nothing(), scene, (32, 48)) < 0.5
    with pytest.raises(InputError, match="region of 5000 pixels"):
        mean_best_overlap(Colours(), scene, (32, 48), least=5000)


def test_clusters_follow_the_features_of_the_trunk(scene):
    torch.manual_seed(0)
    encoder = Encoder(SPEC)
    image = scene.read(0).image
    grouper = ClusterGroups.fit(encoder, [cv2.resize(image, (96, 64))], 3)
    found = groups_of(grouper, image, (64, 96))
    assert found.shape == (32, 48) and 2 <= len(np.unique(found)) <= 3
    again = ClusterGroups.fit(encoder, [cv2.resize(image, (96, 64))], 3)
    np.testing.assert_array_equal(groups_of(again, image, (64, 96)), found)
    # The score is highest at the nearest centre.
    images = torch.from_numpy(cv2.resize(image, (96, 64)))[None]
    scores = grouper.scores(images)[0].flatten(1).T
    from distill.evaluation.objects import _unit_features

    cells = _unit_features(encoder, images)[0].flatten(1).T
    assert torch.equal(scores.argmax(1), torch.cdist(cells, grouper.centres).argmin(1))
    with pytest.raises(InputError, match="fewer than 500 clusters"):
        ClusterGroups.fit(encoder, [image], 500)


def test_overlays_colour_a_group_alike_in_all_images(scene):
    image = scene.read(0).image
    overlays = object_overlays(Colours(), [image, image[:, ::-1].copy()], (32, 48), strength=1.0)
    assert [o.shape for o in overlays] == [image.shape] * 2
    assert all(o.dtype == np.uint8 for o in overlays)
    inside, outside = (16, 16), (2, 2)
    assert (overlays[0][inside] != overlays[0][outside]).any()
    np.testing.assert_array_equal(overlays[0][inside], overlays[1][16, 48 - 1 - 16])
    assert (overlays[0] == 255).all(-1).any()  # outlines


def test_prototypes_of_an_objective_are_shown_and_it_is_left_as_it_was(scene):
    torch.manual_seed(0)
    objective = SlotMIM(Encoder(SPEC), SlotMIM.Options(**OPTIONS)).train()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    image = scene.read(0).image
    (overlay,) = object_overlays(objective, [image], (64, 96))
    assert overlay.shape == image.shape and (overlay != image).any()
    assert objective.training
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())
    assert 0 < mean_best_overlap(PrototypeGroups(objective), scene, (64, 96)) <= 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder that `pretrain` wrote."""
    import sys

    root = tmp_path_factory.mktemp("slotmim")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        image = rng.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{i}.png"), cv2.resize(image, (40, 40)))
    recipe = {
        "method": "slotmim",
        "encoder": "resnet18",
        "encoder_args": TRUNK,
        "options": OPTIONS,
        "epochs": 1,
        "batch_size": 8,
        "size": [32, 32],
        "workers": 0,
    }
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    words = ["--data", root / "images", "--config", root / "recipe.yaml", "--out", root / "run"]
    argv, sys.argv = sys.argv, ["fieldsight-distill", "pretrain", *map(str, words)]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    finally:
        sys.argv = argv
    return root / "run"


def test_a_run_gives_its_prototypes_back(run, scene):
    objective, settings = open_objective(run)
    assert isinstance(objective, SlotMIM) and not objective.training
    assert settings.method == "slotmim" and tuple(settings.size) == (32, 32)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["module"]
    name = "teacher_grouping.prototypes"
    assert torch.equal(objective.state_dict()[name], saved[name])
    assert object_overlays(objective, [scene.read(0).image], (32, 48))[0].shape == (32, 48, 3)


def test_what_is_no_such_run_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    with pytest.raises(InputError, match="not a run folder"):
        open_objective(copy)
    config = json.loads((run / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="not found; it holds the prototypes"):
        open_objective(copy)
    whole = (run / "checkpoint.pt").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"cos\nsystem\n(S'false'\ntR."):
        (copy / "checkpoint.pt").write_bytes(content)
        with pytest.raises(InputError, match="not the checkpoint of slotmim"):
            open_objective(copy)
    (copy / "checkpoint.pt").write_bytes(whole)
    config["settings"]["method"] = "rotation"
    config["settings"]["options"] = {}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="not the checkpoint of rotation with resnet18"):
        open_objective(copy)
    (copy / "config.json").write_text('{"settings": []}')
    with pytest.raises(InputError, match="not a run folder"):
        open_objective(copy)
