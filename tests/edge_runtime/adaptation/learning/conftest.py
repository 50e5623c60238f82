"""A student that has learnt a small world of squares and discs, exported as a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from distill.export import export
from distill.runs import save_student
from distill.tasks.detection import DetectionLoss
from edge_runtime.bundle import Bundle
from edge_runtime.datasets import load_dataset
from edge_runtime.student import Student

SIZE = (64, 96)
CLASSES = {"segmentation": ["floor", "square", "disc"], "detection": ["square", "disc"]}
COLOURS = ((200, 70, 60), (60, 90, 210))


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3], mask uint8 [H, W] and boxes float32 [2, 5] of label and xyxy."""
    image = np.full((*SIZE, 3), rng.integers(110, 150), np.uint8)
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    boxes = []
    for label in range(2):
        half = int(rng.integers(9, 14))
        x = int(rng.integers(half, SIZE[1] // 2 - half)) + label * SIZE[1] // 2
        y = int(rng.integers(half, SIZE[0] - half))
        if label == 0:
            cv2.rectangle(mask, (x - half, y - half), (x + half, y + half), 1, -1)
        else:
            cv2.circle(mask, (x, y), half, 2, -1)
        colour = np.array(COLOURS[label]) + rng.integers(-15, 16)
        image[mask == label + 1] = np.clip(colour, 0, 255)
        boxes.append([label, x - half, y - half, x + half + 1, y + half + 1])
    return image, mask, np.array(boxes, np.float32)


def write_world(root: Path, count: int, seed: int, dim: float = 1.0) -> Path:
    """A dataset.yaml of `count` scenes, darkened by the factor `dim`."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        image, mask, boxes = scene(rng)
        cv2.imwrite(str(root / f"images/{i:03d}.png"), (image * dim).astype(np.uint8)[..., ::-1])
        cv2.imwrite(str(root / f"masks/{i:03d}.png"), mask)
        images.append({"id": i, "file_name": f"{i:03d}.png", "width": SIZE[1], "height": SIZE[0]})
        for label, x1, y1, x2, y2 in boxes.tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": int(label), "bbox": box}
                | {"iscrowd": 0, "area": box[2] * box[3]}
            )
    categories = [{"id": i, "name": n} for i, n in enumerate(CLASSES["detection"])]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(coco))
    spec = {
        "name": "world",
        "splits": {"all": {"images": "images", "masks": "masks", "boxes": "boxes.json"}},
        "segmentation": {"classes": CLASSES["segmentation"]},
        "detection": {"classes": CLASSES["detection"]},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return root / "dataset.yaml"


def trained_student(steps: int = 120) -> Student:
    """A student that knows the world, from a fixed seed."""
    torch.manual_seed(0)
    student = Student(
        "mobilenetv4_conv_small", {t: len(c) for t, c in CLASSES.items()}, 24, 24, 1
    ).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-3)
    rng, detection = np.random.default_rng(1), DetectionLoss()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        scenes = [scene(rng) for _ in range(8)]
        images = torch.from_numpy(np.stack([s[0] for s in scenes]))
        masks = torch.from_numpy(np.stack([s[1] for s in scenes])).long()
        outputs = student(images)
        logits = F.interpolate(outputs["segmentation"], scale_factor=4.0, mode="bilinear")
        boxes = [torch.from_numpy(s[2]) for s in scenes]
        loss = F.cross_entropy(logits, masks) + 0.3 * detection(
            outputs["detection"], [b[:, 1:] for b in boxes], [b[:, 0] for b in boxes]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dataset.yaml`` of the world as trained."""
    return write_world(tmp_path_factory.mktemp("world") / "data", 16, seed=2)


@pytest.fixture(scope="session")
def dim_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dataset.yaml`` of the same world in little light."""
    return write_world(tmp_path_factory.mktemp("dim") / "data", 24, seed=3, dim=0.35)


@pytest.fixture(scope="session")
def student_bundle(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Bundle:
    """The bundle of `trained_student`, as the workstation exports it."""
    run = tmp_path_factory.mktemp("student") / "run"
    run.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    student = trained_student()
    torch.set_num_threads(threads)
    settings = {"neck_width": 24, "head_width": 24, "head_depth": 1, "size": SIZE}
    config = {
        "student": "mobilenetv4_conv_small",
        "classes": {t: CLASSES[t] for t in ("detection", "segmentation")},
        "settings": {**settings, "final_size": None},
    }
    (run / "config.json").write_text(json.dumps(config))
    save_student(run, student)
    data = load_dataset(f"{world}:all")
    bundle, _ = export(run, data, run.parent / "student.bundle", mask_confidence=True, judge=data)
    return bundle
