"""A student that was really trained, on a scene that is learnt in seconds, as a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import yaml
from block_scene import SIZE, draw_block

from calibration import cli
from edge_runtime.bundle import Bundle, open_bundle


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dataset.yaml`` of 20 labelled frames of a block, splits "train" and "val" alike."""
    folder = tmp_path_factory.mktemp("blocks")
    coco: dict[str, list] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "block"}],
    }
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(20):
        image, mask, box = draw_block(i)
        cv2.imwrite(str(folder / "images" / f"f{i:02}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"f{i:02}.png"), mask)
        coco["images"].append({"id": i, "file_name": f"f{i:02}.png", "width": 120, "height": 80})
        coco["annotations"].append(
            {"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 1200, "iscrowd": 0}
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


@pytest.fixture(scope="session")
def trained_bundle(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle of a student fine-tuned on `blocks`; copy it before changing it."""
    from distill.export import export
    from distill.finetuning import finetune
    from distill.settings import FinetuneSettings
    from edge_runtime.datasets import load_dataset

    folder = tmp_path_factory.mktemp("trained")
    data = load_dataset(f"{blocks}:train")
    settings = FinetuneSettings.model_validate(
        {"size": SIZE, "epochs": 20, "batch_size": 5, "lr": 0.003, "ema": 0.9, "workers": 0}
        | {"neck_width": 32, "head_width": 32}
    )
    tasks = ["segmentation", "detection"]
    finetune(data, "mobilenetv4_conv_small", folder / "run", settings, tasks, accelerator="cpu")
    export(folder / "run", data, folder / "blocks.bundle")
    return folder / "blocks.bundle"


@pytest.fixture
def bundle(trained_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy of the trained bundle that a test may change."""
    shutil.copytree(trained_bundle, tmp_path / "blocks.bundle")
    return open_bundle(tmp_path / "blocks.bundle")


@pytest.fixture
def calibrate(
    command_line: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str]]:
    """Runs `fieldsight-calibrate` with arguments; gives exit code and what was said."""

    def call(*arguments: object) -> tuple[int, str]:
        code, out, errors = command_line(cli.main, "fieldsight-calibrate", *arguments)
        return code, out + errors

    return call
