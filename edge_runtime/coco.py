"""Box labels in COCO's JSON, checked, clipped to their image and counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        xyxy: float32 [N, 4] in pixels, inside the image.
        labels: int32 [N], index into the classes.
        crowd: bool [N].
        areas: float32 [N], the object's own area in square pixels.
    """

    xyxy: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    @classmethod
    def empty(cls) -> Boxes:
        """No boxes."""
        return cls.of([])

    @classmethod
    def of(cls, rows: list[tuple[list[float], int, bool, float]]) -> Boxes:
        """From (xyxy, label, crowd, area) rows."""
        return cls(
            np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
            np.array([r[1] for r in rows], np.int32),
            np.array([r[2] for r in rows], bool),
            np.array([r[3] for r in rows], np.float32),
        )

    def as_coco(self, category_ids: list[int]) -> list[dict[str, Any]]:
        """As annotations that still lack ``id`` and ``image_id``."""
        return [
            {
                "category_id": category_ids[int(label)],
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": float(area),
                "iscrowd": int(crowd),
            }
            for (x1, y1, x2, y2), label, crowd, area in zip(
                self.xyxy, self.labels, self.crowd, self.areas, strict=True
            )
        ]


@dataclass(frozen=True, slots=True)
class BoxFile:
    """A COCO file: per file name (id, (height, width)); per id its boxes."""

    images: dict[str, tuple[int, tuple[int, int]]]
    boxes: dict[int, Boxes]
    category_ids: list[int]
    problems: Counter[str] = field(default_factory=Counter)


def read_boxes(path: Path, classes: list[str]) -> BoxFile:
    """Read a COCO file whose categories, in order of id, must be `classes`.

    Boxes reaching out of their image are clipped; boxes without area are dropped. Both are
    counted in ``problems``.

    Raises:
        InputError: Not COCO JSON, or categories, images and annotations contradict each other.
    """
    content = _load(path)
    ids = _category_ids(content["categories"], classes, path)
    images, sizes = _images(content["images"], path)
    index = {category: label for label, category in enumerate(ids)}
    problems: Counter[str] = Counter()
    rows: dict[int, list[tuple[list[float], int, bool, float]]] = {i: [] for i in sizes}
    for number, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{number}]"
        try:
            image_id, category = int(entry["image_id"]), int(entry["category_id"])
            x, y, width, height = (float(v) for v in entry["bbox"])
            area = float(entry.get("area", width * height))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"{where}: {entry!r:.100}, expected image_id, category_id and bbox of 4 numbers"
            ) from None
        if image_id not in sizes:
            raise InputError(f"{where}: image_id {image_id} is not among the file's images")
        if category not in index:
            raise InputError(
                f"{where}: category_id {category} is not among the categories {sorted(index)}"
            )
        box = clip_box([x, y, x + width, y + height], sizes[image_id], problems)
        if box is not None:
            crowd = bool(entry.get("iscrowd", 0))
            whole = (box[2] - box[0]) * (box[3] - box[1])
            area = area if 0 < area < whole else whole
            rows[image_id].append((box, index[category], crowd, area))
    return BoxFile(images, {i: Boxes.of(r) for i, r in rows.items()}, ids, problems)


def clip_box(box: list[float], size: tuple[int, int], problems: Counter[str]) -> list[float] | None:
    """Clip xyxy to an image of (height, width); None if nothing is left of it."""
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)) or x2 <= x1 or y2 <= y1:
        problems["boxes without area, dropped"] += 1
        return None
    height, width = size
    clipped = [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        problems["boxes outside their image, dropped"] += 1
        return None
    if clipped != box:
        problems["boxes reaching out of their image, clipped"] += 1
    return clipped


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of boxes") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: list '{key}' is missing; expected COCO's JSON format")
    return content


def _category_ids(categories: list[Any], classes: list[str], path: Path) -> list[int]:
    """Ids in order, after checking that names agree with the dataset's classes."""
    try:
        pairs = sorted((int(c["id"]), str(c["name"])) for c in categories)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: categories must each have an id and a name") from None
    names = [name for _, name in pairs]
    if names != classes:
        raise InputError(
            f"{path}: categories in order of id are {names}, but detection.classes in "
            f"dataset.yaml are {classes}; make them agree"
        )
    if len({i for i, _ in pairs}) < len(pairs):
        raise InputError(f"{path}: two categories share an id")
    return [i for i, _ in pairs]


def _images(
    entries: list[Any], path: Path
) -> tuple[dict[str, tuple[int, tuple[int, int]]], dict[int, tuple[int, int]]]:
    """Per file name (id, size), and per id the size."""
    images, sizes = {}, {}
    for number, entry in enumerate(entries):
        try:
            image_id, name = int(entry["id"]), str(entry["file_name"])
            size = int(entry["height"]), int(entry["width"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{path}: images[{number}]: {entry!r:.100}, "
                "expected id, file_name, width and height"
            ) from None
        if image_id in sizes or name in images:
            raise InputError(f"{path}: images[{number}]: id {image_id} or {name} is there twice")
        images[name], sizes[image_id] = (image_id, size), size
    return images, sizes
