"""Labelled datasets of synthetic robot scenes, rendered from a seed: data that needs no download.

    python -m distill.data.synthetic FOLDER --scenes 240 --seed 0

writes four fifths of the scenes as split ``train`` and the rest as ``val``.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import Progress

from distill.data.room import STYLES
from distill.data.scenes import (
    DETECTION_CLASSES,
    IGNORED,
    SEGMENTATION_CLASSES,
    Scene,
    render_scene,
)
from edge_runtime.errors import FieldsightError, InputError, explain_validation
from edge_runtime.files import atomic_folder, atomic_write_text

_SPLITS = ("train", "val", "unlabelled")  # the position numbers a split's random stream
_JPEG_QUALITY = 92


class SceneSettings(BaseModel):
    """The part of a spec after ``?``.

    Attributes:
        train: Frames of split ``train``.
        val: Frames of split ``val``.
        unlabelled: Frames of split ``unlabelled``, which has neither masks nor boxes.
        size: Picture as HEIGHTxWIDTH in pixels.
        seed: Of everything random.
    """

    model_config = ConfigDict(extra="forbid")

    train: int = Field(default=240, ge=1, le=1_000_000)
    val: int = Field(default=60, ge=1, le=1_000_000)
    unlabelled: int = Field(default=0, ge=0, le=1_000_000)
    size: str = Field(default="240x320", pattern=r"^\d{2,4}x\d{2,4}$")
    seed: int = Field(default=0, ge=0)

    @property
    def height_width(self) -> tuple[int, int]:
        """`size` as numbers."""
        height, width = self.size.split("x")
        return int(height), int(width)


def parse_spec(spec: str) -> tuple[str, SceneSettings]:
    """Style and settings of a spec such as ``workcell?train=240,val=60,size=240x320,seed=0``.

    Raises:
        InputError: An unknown style or key (naming the nearest), or a value out of range.
    """
    name, _, rest = spec.partition("?")
    if name not in STYLES:
        near = difflib.get_close_matches(name, STYLES, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(STYLES)}"
        raise InputError(f"synthetic scenes of style '{name}' are unknown; {hint}")
    values: dict[str, str] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise InputError(f"{spec}: '{pair}' is not KEY=VALUE, for instance train=240")
        if key in values:
            raise InputError(f"{spec}: '{key}' is given twice")
        values[key] = value
    try:
        settings = SceneSettings.model_validate(values)
    except ValidationError as error:
        raise InputError(explain_validation(error, SceneSettings, spec)) from None
    if min(settings.height_width) < 32:
        raise InputError(f"{spec}: size {settings.size} is too small, expected at least 32x32")
    return name, settings


def iterate_scenes(spec: str, split: str = "train") -> Iterator[Scene]:
    """Render a split's scenes one after another, without writing anything."""
    name, settings = parse_spec(spec)
    if split not in _SPLITS:
        raise InputError(f"no split '{split}' in synthetic scenes; there are {', '.join(_SPLITS)}")
    for index in range(getattr(settings, split)):
        yield render_scene(
            STYLES[name], settings.height_width, settings.seed, index, _SPLITS.index(split)
        )


def render_dataset(spec: str, out: Path, progress: bool = True) -> Path:
    """Render a dataset in the project's format; the folder appears whole or not at all.

    Args:
        spec: See `parse_spec`.
        out: Folder to write; an existing one is replaced when all is rendered, but only if it
            holds a dataset or nothing.
        progress: Show a progress bar when it takes more than two seconds.

    Returns:
        Path of its ``dataset.yaml``.
    """
    name, settings = parse_spec(spec)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder to write the scenes to")
    if out.is_dir() and any(out.iterdir()) and not (out / "dataset.yaml").is_file():
        raise InputError(f"{out}: holds other files; choose a new or empty folder")
    splits = [s for s in _SPLITS if getattr(settings, s)]
    content: dict[str, Any] = {"name": f"synthetic-{name}", "splits": {}}
    with atomic_folder(out) as folder, _Bar(progress, settings, splits) as bar:
        for split in splits:
            content["splits"][split] = _write_split(folder, spec, split, bar)
        content["segmentation"] = {"classes": SEGMENTATION_CLASSES, "ignore_index": IGNORED}
        content["detection"] = {"classes": DETECTION_CLASSES}
        (folder / "scenes.json").write_text(
            json.dumps({"style": name, **settings.model_dump()}, indent=2), encoding="utf-8"
        )
        atomic_write_text(folder / "dataset.yaml", yaml.safe_dump(content, sort_keys=False))
        os.sync()  # one for all, since a sync a picture would take longer than rendering it
    return out / "dataset.yaml"


def _write_split(folder: Path, spec: str, split: str, bar: _Bar) -> dict[str, str]:
    """Write a split's files; returns its entry in ``dataset.yaml``."""
    labelled = split != "unlabelled"
    (folder / "images" / split).mkdir(parents=True)
    if labelled:
        (folder / "masks" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(iterate_scenes(spec, split)):
        stem = f"{index:06d}"
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        picture = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        _write(folder / "images" / split / f"{stem}.jpg", picture, quality)
        if labelled:
            _write(folder / "masks" / split / f"{stem}.png", scene.mask, [])
            height, width = scene.mask.shape
            images.append(
                {"id": index, "file_name": f"{stem}.jpg", "width": width, "height": height}
            )
            annotations += _annotations(scene, index, len(annotations))
        bar.advance()
    entry = {"images": f"images/{split}"}
    if labelled:
        categories = [{"id": i, "name": n} for i, n in enumerate(DETECTION_CLASSES, 1)]
        boxes = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"boxes_{split}.json").write_text(json.dumps(boxes), encoding="utf-8")
        entry |= {"masks": f"masks/{split}", "boxes": f"boxes_{split}.json"}
    return entry


def _annotations(scene: Scene, image_id: int, before: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene, numbered on from `before`."""
    return [
        {
            "id": before + number,
            "image_id": image_id,
            "category_id": int(label) + 1,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "area": int(area),
            "iscrowd": 0,
        }
        for number, ((x1, y1, x2, y2), label, area) in enumerate(
            zip(scene.boxes, scene.labels, scene.areas, strict=True), 1
        )
    ]


def _write(path: Path, array: np.ndarray, options: list[int]) -> None:
    done, data = cv2.imencode(path.suffix, array, options)
    if not done:
        raise FieldsightError(f"{path}: OpenCV could not encode the picture")
    path.write_bytes(data.tobytes())


class _Bar:
    """A progress bar on standard error."""

    def __init__(self, shown: bool, settings: SceneSettings, splits: list[str]) -> None:
        total = sum(getattr(settings, split) for split in splits)
        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=True, disable=not shown or total < 50)
        self.task = self.progress.add_task("rendering scenes", total=total)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self) -> None:
        self.progress.advance(self.task)


def _command(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    scenes: Annotated[int, typer.Option(min=5, help="Frames, a fifth of them for val.")] = 300,
    style: Annotated[str, typer.Option(help=f"One of {', '.join(STYLES)}.")] = "workcell",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH.")] = "240x320",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Render a labelled dataset of synthetic robot scenes."""
    val = max(scenes // 5, 1)
    try:
        path = render_dataset(
            f"{style}?train={scenes - val},val={val},size={size},seed={seed}", folder
        )
    except FieldsightError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", soft_wrap=True)
        sys.exit(error.exit_code)
    typer.echo(f"wrote {path}")
    typer.echo(f"next: fieldsight-distill finetune --data {path}:train --val {path}:val --out DIR")


if __name__ == "__main__":
    typer.run(_command)
