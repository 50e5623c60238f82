"""What a ``dataset.yaml`` may say, and the files it points at."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_runtime.errors import InputError, explain_validation
from edge_runtime.images import IMAGE_SUFFIXES


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SplitSpec(_Strict):
    """Where a split lies, relative to ``dataset.yaml``."""

    images: str
    masks: str | None = None
    boxes: str | None = None


class SegmentationSpec(_Strict):
    """Classes by mask index; pixels of ``ignore_index`` are not judged."""

    classes: list[str] = Field(min_length=1, max_length=255)
    ignore_index: int | None = Field(default=None, ge=0, le=255)


class DetectionSpec(_Strict):
    """Classes in the order of COCO category id."""

    classes: list[str] = Field(min_length=1)


class DatasetSpec(_Strict):
    """The content of ``dataset.yaml``."""

    name: str
    splits: dict[str, SplitSpec] = Field(min_length=1)
    segmentation: SegmentationSpec | None = None
    detection: DetectionSpec | None = None


def read_spec(path: Path) -> DatasetSpec:
    """Read and check a ``dataset.yaml``."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; expected a dataset.yaml or a folder of images"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML file: {error}") from None
    try:
        return DatasetSpec.model_validate(content)
    except ValidationError as error:
        raise InputError(explain_validation(error, DatasetSpec, str(path))) from None


def list_images(folder: Path) -> list[Path]:
    """Image files below a folder, sorted, hidden ones left out; at least one."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    found = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    if not found:
        raise InputError(f"{folder}: no images (expected {', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def stem_of(path: Path, folder: Path) -> str:
    """Path of an image within its folder, without suffix, "/" written as "__"."""
    return "__".join(path.relative_to(folder).with_suffix("").parts)


def fingerprint(path: Path) -> bytes:
    """SHA-256 of a file's size and content, of large files only of both ends."""
    size, end = path.stat().st_size, 1 << 16
    with open(path, "rb") as file:
        data = file.read(end if size > 2 * end else -1)
        if size > 2 * end:
            file.seek(-end, 2)
            data += file.read()
    return hashlib.sha256(size.to_bytes(8, "little") + data).digest()
