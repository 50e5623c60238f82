"""The command line end to end on small data: distil, kill, resume, fine-tune, export, evaluate."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import yaml
from safetensors.torch import save_file

COMMAND = [sys.executable, "-m", "distill.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SMALL = ["size=[64,96]", "batch_size=4", "workers=0", "neck_width=32", "head_width=32", "views=2"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """Twelve frames of a bright square on a dark floor, labelled."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(0)
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "block"}]}
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(12):
        image = rng.integers(0, 90, (80, 120, 3), dtype=np.uint8)
        mask = np.zeros((80, 120), np.uint8)
        x, y = int(rng.integers(5, 70)), int(rng.integers(5, 40))
        image[y : y + 30, x : x + 40] += 120
        mask[y : y + 30, x : x + 40] = 1
        cv2.imwrite(str(folder / "images" / f"f{i}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"f{i}.png"), mask)
        coco["images"].append({"id": i, "file_name": f"f{i}.png", "width": 120, "height": 80})
        coco["annotations"].append(
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [x, y, 40, 30],
                "area": 1200,
                "iscrowd": 0,
            }
        )
    (folder / "boxes.json").write_text(json.dumps(coco))
    split = {"images": "images", "masks": "masks", "boxes": "boxes.json"}
    spec = {
        "name": "blocks",
        "splits": {"train": split, "val": split},
        "segmentation": {"classes": ["floor", "block"], "ignore_index": 255},
        "detection": {"classes": ["block"]},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return folder / "dataset.yaml"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A local weights file under timm's names."""
    path = tmp_path_factory.mktemp("teacher") / "resnet18.safetensors"
    model = timm.create_model("resnet18", pretrained=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return f"resnet18@{path}"


def run(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_distillation_resumes_to_the_same_loss(scene, teacher, tmp_path):
    arguments = ["distill", "--data", str(scene), "--teacher", teacher, "--accelerator", "cpu"]
    settings = [*SMALL, "epochs=12", "checkpoint_every=4"]
    cache = ["--cache-dir", str(tmp_path / "cache")]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(*arguments, *cache, "--out", str(whole), *settings)
    process = subprocess.Popen(
        [*COMMAND, *arguments, *cache, "--out", str(broken), *settings], env=ENVIRONMENT
    )
    deadline = time.monotonic() + 120
    while not (broken / "checkpoint.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "student.safetensors").exists(), "the run ended before it was killed"
    run(*arguments, *cache, "--out", str(broken), "--resume", *settings)
    expected, found = rows(whole), rows(broken)
    assert [r["step"] for r in expected] == [r["step"] for r in found]
    assert abs(float(expected[-1]["train/loss"]) - float(found[-1]["train/loss"])) < 1e-4


def test_without_a_cache_the_teacher_runs_and_a_changed_recipe_does_not_resume(
    scene, teacher, tmp_path
):
    out = tmp_path / "run"
    arguments = ["distill", "--data", str(scene), "--teacher", teacher, "--no-cache"]
    run(*arguments, "--out", str(out), "--probe", str(scene), *SMALL, "epochs=1", "probe_every=1")
    assert 0 <= json.loads((out / "summary.json").read_text())["probe"]["linear_miou"] <= 1
    said = run(*arguments, "--out", str(out), "--resume", *SMALL, "epochs=2", code=2)
    assert "other settings" in said


def test_labels_to_bundle_to_figures(scene, teacher, tmp_path):
    distilled, tuned, bundle = tmp_path / "d", tmp_path / "t", tmp_path / "blocks.bundle"
    run("distill", "--data", str(scene), "--teacher", teacher, "--out", str(distilled), *SMALL,
        "epochs=2")  # fmt: skip
    run("finetune", "--data", str(scene), "--encoder", str(distilled), "--out", str(tuned),
        "--labels", "50%", *SMALL[:-1], "epochs=40", "lr=0.003", "ema=0.9")  # fmt: skip
    assert json.loads((tuned / "summary.json").read_text())["images"] == 6
    run("export", str(tuned), "--data", str(scene), "--out", str(bundle), "--mask-confidence")
    figures = tmp_path / "figures.json"
    run("evaluate", str(bundle), "--data", f"{scene}:val", "--json", str(figures))
    found = json.loads(figures.read_text())
    assert found["frames"] == 12
    assert found["segmentation"]["miou"] > 0.7
    assert set(found["detection"]) >= {"map", "map_50", "ap_30"}
    run("finetune", "--data", str(scene), "--out", str(tmp_path / "p"), "--labels", "4",
        "--pseudo-labels", str(bundle), *SMALL[:-1], "epochs=1")  # fmt: skip
    pseudo = yaml.safe_load((tmp_path / "p" / "pseudo" / "dataset.yaml").read_text())
    assert pseudo["segmentation"]["classes"] == ["floor", "block"]
    assert len(list((tmp_path / "p" / "pseudo" / "masks").iterdir())) == 8


def test_wrong_input_is_named(scene, teacher, tmp_path):
    weights = teacher.split("@")[1]
    out = str(tmp_path / "out")
    base = ["distill", "--data", str(scene), "--out", out]
    assert "does not fit" in run(*base, "--teacher", f"resnet50@{weights}", *SMALL, code=2)
    assert "not found" in run(*base, "--teacher", "resnet18@/none.safetensors", code=2)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(weights).read_bytes()[:1000])
    assert "not a readable" in run(*base, "--teacher", f"resnet18@{broken}", *SMALL, code=2)
    tune = ["finetune", "--data", str(scene), "--out", out]
    assert "no_such" in run(*tune, "--student", "no_such", code=2)
    assert "unknown tasks" in run(*tune, "--tasks", "flying", code=2)
    said = run(*tune, "--encoder", weights, "--student", "repvit_m0_9", *SMALL[:-1], code=2)
    assert "does not fit" in said
    assert "not a run folder" in run("export", str(tmp_path), "--data", str(scene), "--out", out,
                                     code=2)  # fmt: skip


@pytest.mark.slow
def test_two_processes_share_one_run(scene, teacher, tmp_path):
    out = tmp_path / "two"
    run("distill", "--data", str(scene), "--teacher", teacher, "--out", str(out), "--devices", "2",
        "--accelerator", "cpu", *SMALL, "batch_size=2", "epochs=3")  # fmt: skip
    assert [int(r["step"]) for r in rows(out)][-1] == 9
    assert (out / "student.safetensors").is_file()
