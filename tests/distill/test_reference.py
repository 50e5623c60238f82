"""Workstation heads through the command line: trained, judged like bundles, never exported."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
import yaml

from distill.cli import main
from distill.evaluation.per_image import read_per_image
from distill.reference.rcnn import _object_masks
from distill.settings import FinetuneSettings
from distill.tasks.families import family

PROGRAM = "fieldsight-distill"
SMALL = ["size=[64,96]", "batch_size=4", "workers=0", "lr=0.003", "ema=0.9", "colour=0",
         "--accelerator", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Twelve frames of a bright block on a dark floor; `dataset.yaml`."""
    folder = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(0)
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "block"}]}
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(12):
        image = rng.integers(0, 90, (64, 96, 3), dtype=np.uint8)
        mask = np.zeros((64, 96), np.uint8)
        x, y = int(rng.integers(4, 56)), int(rng.integers(4, 32))
        image[y : y + 26, x : x + 34] += 120
        mask[y : y + 26, x : x + 34] = 1
        cv2.imwrite(str(folder / "images" / f"f{i}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"f{i}.png"), mask)
        coco["images"].append({"id": i, "file_name": f"f{i}.png", "width": 96, "height": 64})
        coco["annotations"].append(
            {"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, 34, 26], "iscrowd": 0}
        )
    (folder / "boxes.json").write_text(json.dumps(coco))
    split = {"images": "images", "masks": "masks", "boxes": "boxes.json"}
    spec = {
        "name": "blocks",
        "splits": {"train": split},
        "segmentation": {"classes": ["floor", "block"], "ignore_index": 255},
        "detection": {"classes": ["block"]},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return folder / "dataset.yaml"


def tune(command_line, data, out, head, task, *words, trunk="test_efficientnet"):
    code, said, wrong = command_line(
        main, PROGRAM, "finetune", "--data", data, "--out", out, "--head", head, "--task", task,
        "--student", trunk, *SMALL, *words)  # fmt: skip
    return code, " ".join((said + wrong).split())


@pytest.mark.parametrize("head", ["unet", "fpn"])
def test_segmentation_heads_learn_and_export_refuses_them(blocks, tmp_path, command_line, head):
    run, figures = tmp_path / "run", tmp_path / "f.json"
    code, said = tune(command_line, blocks, run, head, "segmentation", "epochs=10")
    assert code == 0 and "evaluate" in said
    code, *_ = command_line(
        main, PROGRAM, "evaluate", run, "--data", blocks, "--json", figures)  # fmt: skip
    assert code == 0
    miou = json.loads(figures.read_text())["segmentation"]["miou"]
    assert miou > 0.7
    kept = read_per_image(run).scores("miou")
    assert float(kept.value(np.ones((1, 12)))[0]) == pytest.approx(miou)
    code, said, wrong = command_line(
        main, PROGRAM, "export", run, "--data", blocks, "--out", tmp_path / "x.bundle")  # fmt: skip
    assert code == 2 and "for workstations" in " ".join(wrong.split())
    assert not (tmp_path / "x.bundle").exists()
    code, said = tune(
        command_line, blocks, tmp_path / "s", "student", "segmentation", "epochs=1", "--labels",
        "4", "--pseudo-labels", run)  # fmt: skip
    assert code == 0, said
    labelled = sorted((tmp_path / "s" / "pseudo" / "masks").iterdir())
    truth = [cv2.imread(str(blocks.parent / "masks" / m.name), 0) for m in labelled]
    found = [cv2.imread(str(m), 0) for m in labelled]
    sure = np.array(found) != 255
    assert len(labelled) == 8 and sure.mean() > 0.5
    assert (np.array(found)[sure] == np.array(truth)[sure]).mean() > 0.9


@pytest.mark.parametrize("head", ["faster-rcnn", "mask-rcnn"])
def test_two_stage_heads_are_trained_and_judged(blocks, tmp_path, command_line, head):
    run, figures = tmp_path / "run", tmp_path / "f.json"
    code, said = tune(command_line, blocks, run, head, "detection", "epochs=1", "--labels", "4")
    assert code == 0, said
    head_row = (run / "metrics.csv").read_text().splitlines()[0]
    assert ("train/mask" in head_row) == (head == "mask-rcnn") and "train/objectness" in head_row
    command_line(main, PROGRAM, "evaluate", run, "--data", blocks, "--json", figures, "--limit", 4)
    found = json.loads(figures.read_text())["detection"]
    kept = read_per_image(run).scores("ap_30")
    assert float(kept.value(np.ones((1, 4)))[0]) == pytest.approx(found["ap_30"])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["faster-rcnn", "mask-rcnn"])
def test_two_stage_heads_learn(blocks, tmp_path, command_line, head):
    run, figures = tmp_path / "run", tmp_path / "f.json"
    code, said = tune(command_line, blocks, run, head, "detection", "epochs=25")
    assert code == 0, said
    command_line(main, PROGRAM, "evaluate", run, "--data", blocks, "--json", figures)
    assert json.loads(figures.read_text())["detection"]["ap_30"] > 0.7


@pytest.mark.parametrize("head", ["unet", "fpn", "faster-rcnn"])
def test_a_transformer_is_a_trunk_too(head):
    task = "detection" if head == "faster-rcnn" else "segmentation"
    heads = family(head)
    model = heads.build("test_vit", {task: ["a", "b"]}, FinetuneSettings())
    outputs = heads.outputs(model.eval(), torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    if task == "segmentation":
        assert outputs["mask"].shape == (32, 48)
    else:
        assert set(outputs) == {"boxes", "scores", "labels"}
    names = [n for n, _ in model.trunk.named_parameters()]
    assert not any(n.startswith("trunk.") for n in names) and names


def test_an_objects_mask_is_its_class_within_its_box():
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[2:5, 1:4] = 3
    mask[2:5, 5:7] = 3
    found = _object_masks(mask, torch.tensor([[1.0, 2, 4, 5]]), torch.tensor([3]))
    assert found.shape == (1, 8, 8) and int(found.sum()) == 9 and bool(found[0, 2:5, 1:4].all())
    none = _object_masks(mask, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert none.shape == (0, 8, 8)


def test_what_a_head_cannot_do_is_said(blocks, tiny, tmp_path, command_line):
    out = tmp_path / "run"
    for head, task, words, message in (
        ("unet", "detection", [], "faster-rcnn"),
        ("uent", "segmentation", [], "did you mean unet"),
        ("mask-rcnn", "segmentation,detection", [], "not segmentation"),
        ("unet", "segmentation", ["mix=mixup"], "mix=cutmix"),
        ("student", "detection", ["--unlabelled", blocks], "--pseudo-labels"),
        ("student", "segmentation", ["--mode", "prototype"], "classification"),
        ("student", "segmentation,detection", ["mix=cutmix"], "cuts through boxes"),
        ("unet", "segmentation", ["--encoder", tmp_path / "no"], "not found"),
    ):
        code, said = tune(command_line, blocks, out, head, task, *words)
        assert code == 2 and message in said, (head, task, said)
    code, said = tune(command_line, tiny.yaml, out, "mask-rcnn", "detection")
    assert code == 2 and "choose faster-rcnn" in said
    assert not (out / "student.safetensors").exists()
