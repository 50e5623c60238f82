"""Labelled and unlabelled frames on disk: ``dataset.yaml`` or a plain folder, numpy only."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.coco import Boxes, read_boxes
from edge_runtime.dataset_spec import DatasetSpec, fingerprint, list_images, read_spec, stem_of
from edge_runtime.errors import InputError
from edge_runtime.images import IMAGE_SUFFIXES, read_image, read_mask

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame's files.

    Attributes:
        stem: Path within the image folder without suffix, "/" written as "__".
        image: Image file.
        mask: Mask file, or None without mask labels.
        image_id: That of the COCO file, or None without box labels.
        size: (height, width) the COCO file states, if any.
    """

    stem: str
    image: Path
    mask: Path | None = None
    image_id: int | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """One frame with its labels.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        mask: uint8 [H, W] class indices, or None.
        boxes: float32 [N, 4] xyxy in pixels.
        labels: int32 [N], index into the detection classes.
        crowd: bool [N], regions of many objects that are not judged.
    """

    image: np.ndarray
    mask: np.ndarray | None
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


@dataclass
class Dataset:
    """The frames of one split; `problems` counts labels that were mended or left out."""

    name: str
    split: str
    samples: list[Sample]
    segmentation_classes: list[str] | None = None
    ignore_index: int | None = None
    detection_classes: list[str] | None = None
    category_ids: list[int] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    boxes: dict[int, Boxes] | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> LabelledFrame:
        """Decode one frame and its labels.

        Raises:
            InputError: A file is broken, sizes disagree or the mask holds an unknown class.
        """
        sample = self.samples[index]
        image = read_image(sample.image)
        size = image.shape[:2]
        if sample.size is not None and sample.size != size:
            raise InputError(
                f"{sample.image}: {size[1]}x{size[0]} pixels, but its boxes are for "
                f"{sample.size[1]}x{sample.size[0]}; use the labels made for this image"
            )
        mask = self._read_mask(sample.mask, size) if sample.mask else None
        boxes = Boxes.empty()
        if self.boxes is not None and sample.image_id is not None:
            boxes = self.boxes[sample.image_id]
        return LabelledFrame(image, mask, boxes.xyxy, boxes.labels, boxes.crowd)

    def _read_mask(self, path: Path, size: tuple[int, ...]) -> np.ndarray:
        mask = read_mask(path)
        if mask.shape != size:
            raise InputError(
                f"{path}: {mask.shape[1]}x{mask.shape[0]} pixels, but its image has "
                f"{size[1]}x{size[0]}; a mask has the size of its image"
            )
        classes = len(self.segmentation_classes or [])
        unknown = mask >= classes
        if self.ignore_index is not None:
            unknown &= mask != self.ignore_index
        if unknown.any():
            ignored = f" or {self.ignore_index} (ignored)" if self.ignore_index is not None else ""
            raise InputError(
                f"{path}: class index {int(mask[unknown][0])}, expected 0 to {classes - 1}"
                f"{ignored}; correct the mask or the class list in {self.source}"
            )
        return mask

    @property
    def coco(self) -> dict[str, Any] | None:
        """The mended boxes of these samples as COCO content, or None without box labels."""
        if self.boxes is None or self.detection_classes is None:
            return None
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for sample in self.samples:
            if sample.image_id is None or sample.size is None:
                continue
            height, width = sample.size
            images.append(
                {
                    "id": sample.image_id,
                    "file_name": sample.image.name,
                    "width": width,
                    "height": height,
                }
            )
            for entry in self.boxes[sample.image_id].as_coco(self.category_ids):
                entry.update(id=len(annotations) + 1, image_id=sample.image_id)
                annotations.append(entry)
        categories = [
            {"id": i, "name": n}
            for i, n in zip(self.category_ids, self.detection_classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def digest(self) -> str:
        """Hex SHA-256 of names, sizes and content; of large files only both 64 KiB ends."""
        digest = hashlib.sha256(f"{self.segmentation_classes}{self.detection_classes}".encode())
        for sample in self.samples:
            digest.update(sample.stem.encode())
            for path in (sample.image, sample.mask):
                if path is not None:
                    digest.update(fingerprint(path))
            if self.boxes is not None and sample.image_id is not None:
                boxes = self.boxes[sample.image_id]
                digest.update(boxes.xyxy.tobytes() + boxes.labels.tobytes())
        return digest.hexdigest()

    def subset(self, amount: str | int, seed: int = 0) -> Dataset:
        """A random part, as a count (40) or a share ("10%"); smaller parts lie within larger.

        Raises:
            InputError: The amount is no number, less than one frame, or more than there are.
        """
        total = len(self.samples)
        text = str(amount).strip()
        try:
            share = text.endswith("%")
            count = round(total * float(text[:-1]) / 100) if share else int(text)
        except (ValueError, OverflowError):
            raise InputError(
                f"{text!r} is no amount of frames; write a count like 40 or a share like 10%"
            ) from None
        if not 1 <= count <= total or (share and float(text[:-1]) > 100):
            raise InputError(f"{text} is {count} frames, but {self.name}:{self.split} has {total}")
        chosen = np.sort(np.random.default_rng(seed).permutation(total)[:count])
        return dataclasses.replace(self, samples=[self.samples[i] for i in chosen])


def load_dataset(spec: str | Path) -> Dataset:
    """Open ``path/dataset.yaml:split``; the split may be left out where there is only one."""
    path, split = _divide(str(spec))
    if path.is_dir():
        path = path / "dataset.yaml"
    content = read_spec(path)
    if split is None and len(content.splits) == 1:
        split = next(iter(content.splits))
    if split not in content.splits:
        found = "no split named" if split is None else f"no split '{split}'"
        names = ", ".join(content.splits)
        raise InputError(f"{path}: {found}; add one of these after a colon: {names}")
    return _open_split(path, content, split)


def open_data(spec: str | Path, split: str = "train") -> Dataset:
    """Open a dataset, an image folder or one image.

    Args:
        spec: ``dataset.yaml[:split]``, a folder with one in it, or a folder of images (searched
            through to the bottom, unlabelled).
        split: Split to take where `spec` names none and there are several.
    """
    path, asked = _divide(str(spec))
    if path.is_dir() and not (path / "dataset.yaml").is_file():
        if asked is not None:
            raise InputError(f"{path}: a folder without dataset.yaml has no split '{asked}'")
        samples = [Sample(stem_of(i, path), i) for i in list_images(path)]
        return Dataset(path.name, "all", samples, source=str(path))
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        return Dataset(path.stem, "all", [Sample(path.stem, path)], source=str(path))
    if path.is_file() and path.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{path}: expected a dataset.yaml, an image or a folder of images")
    if asked is None:
        content = read_spec(path / "dataset.yaml" if path.is_dir() else path)
        asked = next(iter(content.splits)) if len(content.splits) == 1 else split
    return load_dataset(f"{path}:{asked}")


def _divide(spec: str) -> tuple[Path, str | None]:
    """Path and split of ``PATH[:SPLIT]``; a path that exists as it stands has none."""
    before, colon, after = spec.rpartition(":")
    if Path(spec).exists() or not colon or "/" in after or not before:
        return Path(spec), None
    return Path(before), after


def _open_split(path: Path, spec: DatasetSpec, split: str) -> Dataset:
    part, root = spec.splits[split], path.parent
    for kind, labels, section in (
        ("masks", part.masks, spec.segmentation),
        ("boxes", part.boxes, spec.detection),
    ):
        if labels is not None and section is None:
            name = "segmentation" if kind == "masks" else "detection"
            raise InputError(f"{path}: split '{split}' has {kind}; add '{name}: {{classes: ...}}'")
    folder = root / part.images
    samples = [Sample(stem_of(i, folder), i) for i in list_images(folder)]
    dataset = Dataset(spec.name, split, samples, source=str(path))
    if spec.segmentation is not None:
        dataset.segmentation_classes = spec.segmentation.classes
        dataset.ignore_index = spec.segmentation.ignore_index
    if spec.detection is not None:
        dataset.detection_classes = spec.detection.classes
        dataset.category_ids = list(range(1, len(spec.detection.classes) + 1))
    if part.masks is not None:
        _attach_masks(dataset, folder, root / part.masks)
    if part.boxes is not None:
        _attach_boxes(dataset, folder, root / part.boxes)
    for problem, count in dataset.problems.items():
        log.warning("%s:%s: %s: %d", path, split, problem, count)
    return dataset


def _attach_masks(dataset: Dataset, folder: Path, masks: Path) -> None:
    """Give every sample its mask; images without one stay, unlabelled, and are counted."""
    if not masks.is_dir():
        raise InputError(f"{masks}: no such folder of masks; see '{dataset.split}' in its yaml")
    if len({s.stem for s in dataset.samples}) < len(dataset.samples):
        raise InputError(f"{folder}: two images share a name; a mask would belong to both")
    found = 0
    for index, sample in enumerate(dataset.samples):
        mask = masks / sample.image.relative_to(folder).with_suffix(".png")
        if mask.is_file():
            dataset.samples[index] = dataclasses.replace(sample, mask=mask)
            found += 1
    if not found:
        raise InputError(f"{masks}: no mask has the name of an image in {folder}")
    if found < len(dataset.samples):
        dataset.problems["images without mask"] = len(dataset.samples) - found


def _attach_boxes(dataset: Dataset, folder: Path, path: Path) -> None:
    """Give every sample its boxes; images the COCO file does not list are left out and counted."""
    assert dataset.detection_classes is not None
    found = read_boxes(path, dataset.detection_classes)
    kept = []
    for sample in dataset.samples:
        entry = found.images.get(sample.image.relative_to(folder).as_posix())
        entry = entry or found.images.get(sample.image.name)
        if entry is not None:
            kept.append(dataclasses.replace(sample, image_id=entry[0], size=entry[1]))
    if not kept:
        raise InputError(f"{path}: lists no image of {folder}; file names must agree")
    dataset.boxes, dataset.category_ids = found.boxes, found.category_ids
    dataset.problems += found.problems
    for problem, count in (
        ("images the box file does not list, left out", len(dataset.samples) - len(kept)),
        ("images listed but not there", len(found.images) - len(kept)),
    ):
        if count:
            dataset.problems[problem] = count
    dataset.samples = kept
