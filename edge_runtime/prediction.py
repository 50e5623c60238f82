"""Perception over many frames, written as files: overlays, masks, JSON lines, COCO results."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_runtime.datasets import Dataset, load_dataset
from edge_runtime.errors import FieldsightError, InputError
from edge_runtime.files import atomic_write_bytes, atomic_write_text
from edge_runtime.frames import Detections, Frame, Result
from edge_runtime.images import read_image
from edge_runtime.manifest import ClassSpec
from edge_runtime.perception import Perception
from edge_runtime.sources import FrameSource, open_source

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DatasetIds:
    """How results name images and classes, so that they match a dataset's COCO file.

    Attributes:
        image_ids: COCO image id by frame id.
        category_ids: COCO category id by detection label.
    """

    image_ids: Mapping[str, int] = field(default_factory=dict)
    category_ids: Sequence[int] = ()


class DatasetFrames(FrameSource):
    """Frames of a dataset's split; frame ids are its stems. Unreadable ones are skipped.

    Attributes:
        ids: The dataset's image and category ids.
    """

    def __init__(self, dataset: Dataset, limit: int | None = None) -> None:
        super().__init__(f"{dataset.name}:{dataset.split}", len(dataset.samples), limit)
        self._samples = dataset.samples
        ids = {s.stem: s.image_id for s in dataset.samples if s.image_id is not None}
        self.ids = DatasetIds(ids, dataset.category_ids or ())

    def _frames(self) -> Iterator[Frame]:
        for sample in self._samples:
            try:
                image = read_image(sample.image)
            except InputError as error:
                self.skipped += 1
                log.warning("skipped: %s", error)
                continue
            yield Frame(image, sample.image.stat().st_mtime_ns, sample.stem)


def open_frames(source: str, limit: int | None = None) -> FrameSource:
    """Frames of a ``dataset.yaml[:SPLIT]``, an image, a folder, a video or "camera:INDEX".

    Raises:
        InputError: There is nothing to read there.
    """
    if re.search(r"\.ya?ml(:[^/]*)?$", source):
        return DatasetFrames(load_dataset(source), limit)
    return open_source(source, limit)


class Overlay:
    """Draws results on images with supervision's annotators.

    Args:
        detection_classes: Names and colours, empty without detection.
        segmentation_classes: Likewise.
        opacity: Of the mask, 0 to 1.
    """

    def __init__(
        self,
        detection_classes: Sequence[ClassSpec],
        segmentation_classes: Sequence[ClassSpec],
        opacity: float = 0.5,
    ) -> None:
        try:
            import supervision
        except ImportError:
            raise InputError(
                "overlays need the package supervision: pip install 'fieldsight[viz]', "
                "or use --no-overlays"
            ) from None
        self._sv = supervision
        self._names = [spec.name for spec in detection_classes]
        self._opacity = opacity
        self._colors = np.zeros((256, 3), np.uint8)
        for index, spec in enumerate(segmentation_classes):
            self._colors[index] = spec.color
        if detection_classes:
            palette = supervision.ColorPalette(
                [supervision.Color(*reversed(spec.color)) for spec in detection_classes]
            )
            self._box = supervision.BoxAnnotator(color=palette, thickness=2)
            self._label = supervision.LabelAnnotator(
                color=palette, text_scale=0.35, text_thickness=1, text_padding=2
            )

    def draw(self, image: np.ndarray, result: Result) -> np.ndarray:
        """Draw one result.

        Args:
            image: uint8 [H, W, 3] RGB, left as it is.
            result: What perception made of it.

        Returns:
            uint8 [H, W, 3] RGB.
        """
        scene = np.ascontiguousarray(image).copy()
        if result.segmentation is not None:
            colors = self._colors[result.segmentation.mask]
            scene = cv2.addWeighted(colors, self._opacity, scene, 1 - self._opacity, 0)
        if result.detections is not None and len(result.detections):
            found = result.detections
            boxes = self._sv.Detections(
                xyxy=found.boxes, confidence=found.scores, class_id=found.labels.astype(int)
            )
            texts = [
                f"{self._names[label]} {score:.2f}"
                for label, score in zip(found.labels, found.scores, strict=True)
            ]
            scene = self._box.annotate(scene, boxes)
            scene = self._label.annotate(scene, boxes, labels=texts)
        return scene


class PredictionWriter:
    """Writes results as they come, so that a lost source loses nothing already written.

    `predictions.jsonl` grows line by line; `detections.coco.json` is written by `close`, which
    runs also when the loop ends with an error.

    Args:
        out: Folder to write to, created if needed.
        perception: Whose results they are.
        masks: Write `masks/<id>.png`.
        overlays: Write `overlays/<id>.jpg`.
        ids: Image and category ids of a dataset; counted from 1 if None.
    """

    def __init__(
        self,
        out: Path,
        perception: Perception,
        masks: bool = True,
        overlays: bool = True,
        ids: DatasetIds | None = None,
    ) -> None:
        self.out = out
        self._detects = "detection" in perception.tasks
        self._masks = masks and "segmentation" in perception.tasks
        self._classes, mask_classes = (
            perception.classes(task) if task in perception.tasks else []
            for task in ("detection", "segmentation")
        )
        self._overlay = Overlay(self._classes, mask_classes) if overlays else None
        self._ids = ids or DatasetIds()
        self._coco: list[dict[str, Any]] = []
        self.frames = 0
        self._named: set[str] = set()
        out.mkdir(parents=True, exist_ok=True)
        for name, wanted in (("masks", self._masks), ("overlays", overlays)):
            if wanted:
                (out / name).mkdir(exist_ok=True)
        self._lines = open(out / "predictions.jsonl", "w", encoding="utf-8")

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, frame: Frame, result: Result) -> None:
        """Write one frame's files and its line."""
        self.frames += 1
        stem = frame.frame_id if frame.frame_id not in self._named else ""
        stem = stem or f"{frame.frame_id}_{self.frames:06d}"
        self._named.add(stem)
        image_id = self._ids.image_ids.get(frame.frame_id, self.frames)
        line: dict[str, Any] = {
            "image_id": image_id,
            "frame_id": frame.frame_id,
            "stamp_ns": frame.stamp_ns,
            "size": list(frame.image.shape[:2]),
            "timings_ms": {name: round(ms, 3) for name, ms in result.timings_ms.items()},
        }
        if result.detections is not None:
            line["detections"] = self._objects(result.detections)
            self._coco += self._coco_results(result.detections, image_id)
        if self._masks and result.segmentation is not None:
            line["mask"] = f"masks/{stem}.png"
            _write_image(self.out / line["mask"], result.segmentation.mask)
        if self._overlay is not None:
            line["overlay"] = f"overlays/{stem}.jpg"
            drawn = self._overlay.draw(frame.image, result)
            _write_image(self.out / line["overlay"], cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

    def close(self) -> list[Path]:
        """Finish the files and return what was written."""
        if not self._lines.closed:
            os.fsync(self._lines.fileno())
            self._lines.close()
            if self._detects:
                atomic_write_text(self.out / "detections.coco.json", json.dumps(self._coco))
        names = ("predictions.jsonl", "detections.coco.json", "masks", "overlays")
        return [self.out / name for name in names if (self.out / name).exists()]

    def _objects(self, found: Detections) -> list[dict[str, Any]]:
        return [
            {
                "class": self._classes[label].name,
                "label": int(label),
                "score": float(score),
                "box": [float(value) for value in box],
            }
            for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
        ]

    def _coco_results(self, found: Detections, image_id: int) -> list[dict[str, Any]]:
        categories = self._ids.category_ids
        return [
            {
                "image_id": image_id,
                "category_id": int(categories[label]) if categories else int(label) + 1,
                "bbox": [float(v) for v in (x1, y1, float(x2) - float(x1), float(y2) - float(y1))],
                "score": float(score),
            }
            for (x1, y1, x2, y2), score, label in zip(
                found.boxes, found.scores, found.labels, strict=True
            )
        ]


def predict(
    perception: Callable[[Frame], Result], frames: Iterable[Frame], writer: PredictionWriter
) -> int:
    """Run perception over frames and write each result; returns the number of frames.

    The writer is closed also when the frames end with an error, such as a camera that vanished.
    """
    with writer:
        for frame in frames:
            writer.write(frame, perception(frame))
    return writer.frames


def _write_image(path: Path, image: np.ndarray) -> None:
    good, data = cv2.imencode(path.suffix, image)
    if not good:
        raise FieldsightError(f"{path}: the image could not be encoded")
    atomic_write_bytes(path, data.tobytes())
