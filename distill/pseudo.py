"""Pseudo-labels: a larger model labels what has no labels."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from rich.progress import track

from distill.evaluation.running import RunPerception, is_run
from edge_runtime.bundle import open_bundle
from edge_runtime.datasets import Dataset, open_data
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_folder, atomic_write_text
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

_MASK_CONFIDENCE = 0.6
_BOX_CONFIDENCE = 0.4


def label_rest(labeller: Path, whole: Dataset, used: Dataset, out: Path) -> Dataset:
    """Labels the frames of ``whole`` that are not in ``used`` and opens them as a dataset.

    Pixels the model is unsure of are ignored; a bundle says which where it was exported with
    ``--mask-confidence``.

    Args:
        labeller: a bundle, or the run of a student or of a workstation's model.

    Raises:
        InputError: its classes are not the data's.
    """
    taken = {s.image for s in used.samples}
    rest = [i for i, s in enumerate(whole.samples) if s.image not in taken]
    if not rest:
        raise InputError("no frame is left to pseudo-label: --labels already takes them all")
    with contextlib.closing(_open(labeller, whole)) as model:
        shutil.rmtree(out, ignore_errors=True)
        with atomic_folder(out) as work:
            _write(work, whole, rest, model)
    return open_data(f"{out / 'dataset.yaml'}:train")


def _open(labeller: Path, data: Dataset) -> Any:
    """The model as something that perceives frames, after checking that its classes agree."""
    if is_run(labeller):
        model: Any = RunPerception(labeller, _BOX_CONFIDENCE)
        classes = model.names
    else:
        bundle = open_bundle(labeller)
        classes = {t: [c.name for c in specs] for t, specs in bundle.manifest.classes.items()}
        model = Perception(bundle, score_threshold=_BOX_CONFIDENCE)
    wanted = {"segmentation": data.segmentation_classes, "detection": data.detection_classes}
    for task, names in classes.items():
        if wanted[task] and names != list(wanted[task] or []):
            raise InputError(
                f"the {task} classes {names} of {labeller} are not those of {data.name} "
                f"{wanted[task]}; label with a model that was fine-tuned on the same data"
            )
    return model


def _write(work: Path, data: Dataset, rest: list[int], model: Any) -> None:
    for folder in ("images", "masks"):
        (work / folder).mkdir()
    ignore = 255 if data.ignore_index is None else data.ignore_index
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, i in enumerate(track(rest, "pseudo-labels")):
        sample = data.samples[i]
        image = data.read(i).image
        result = model(Frame(image, 0, sample.stem))
        shutil.copy(sample.image, work / "images" / sample.image.name)
        if result.segmentation is not None:
            mask = result.segmentation.mask.copy()
            if result.segmentation.confidence is not None:
                sure = cv2.resize(result.segmentation.confidence, mask.shape[::-1])
                mask[sure < _MASK_CONFIDENCE] = ignore
            cv2.imwrite(str(work / "masks" / f"{sample.image.stem}.png"), mask)
        height, width = image.shape[:2]
        name = sample.image.name
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        if result.detections is not None:
            for box, label in zip(result.detections.boxes, result.detections.labels, strict=True):
                annotations.append(_annotation(len(annotations), number, box, int(label)))
    names = data.detection_classes or []
    categories = [{"id": k + 1, "name": n} for k, n in enumerate(names)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    split = {"images": "images"}
    spec: dict[str, object] = {"name": f"{data.name}-pseudo", "splits": {"train": split}}
    if data.segmentation_classes and any((work / "masks").iterdir()):
        split["masks"] = "masks"
        spec["segmentation"] = {
            "classes": list(data.segmentation_classes),
            "ignore_index": ignore,
        }
    if names:
        split["boxes"] = "boxes.json"
        spec["detection"] = {"classes": list(names)}
        atomic_write_text(work / "boxes.json", json.dumps(coco))
    atomic_write_text(work / "dataset.yaml", yaml.safe_dump(spec))


def _annotation(number: int, image: int, box: np.ndarray, label: int) -> dict[str, object]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }
