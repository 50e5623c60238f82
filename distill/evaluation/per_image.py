"""The file of results image by image that ``evaluate`` writes and ``compare`` reads."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.scores import BOX_METRICS, BoxScores, ClassScores, PixelScores, Scores
from edge_runtime.errors import InputError
from edge_runtime.evaluation import IOU_THRESHOLDS
from edge_runtime.files import atomic_write_bytes

FILE_NAME = "per_image.npz"
_VERSION = 1
_ARRAYS = {
    "segmentation": ("confusion",),
    "classification": ("label", "predicted"),
    "detection": ("score", "image", "box_label", "hit", "spared", "objects"),
}


@dataclass
class PerImage:
    """Results of one model on one split.

    Attributes:
        data: name, split and digest of what was judged.
        images: per task the names of the images, in order.
        arrays: per task the arrays; see `as_scores`.
        classes: per task the classes' names.
        ignore: mask value that is not judged.
    """

    data: dict[str, str]
    images: dict[str, list[str]] = field(default_factory=dict)
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    ignore: int | None = None

    def metrics(self) -> list[str]:
        """Names of the metrics that can be computed, the usual ones."""
        return [name for name, (task, _) in METRICS.items() if task in self.images]

    def scores(self, metric: str) -> Scores:
        """What a comparison needs of one metric.

        Raises:
            InputError: no such metric, or its task was not judged.
        """
        if metric not in METRICS:
            raise InputError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
        task, build = METRICS[metric]
        if task not in self.images:
            raise InputError(f"{metric} needs {task}, but only {list(self.images)} was judged")
        return build(self)


def _pixels(results: PerImage) -> Scores:
    return PixelScores(results.arrays["segmentation"]["confusion"], results.ignore)


def _classes(results: PerImage) -> Scores:
    arrays = results.arrays["classification"]
    return ClassScores(arrays["label"] == arrays["predicted"])


def _boxes(thresholds: tuple[int, ...]) -> Callable[[PerImage], Scores]:
    def build(results: PerImage) -> Scores:
        a = results.arrays["detection"]
        order = (a["score"], a["image"], a["box_label"], a["hit"], a["spared"], a["objects"])
        return BoxScores(*order, thresholds)

    return build


METRICS: dict[str, tuple[str, Callable[[PerImage], Scores]]] = {
    "miou": ("segmentation", _pixels),
    "accuracy": ("classification", _classes),
    **{name: ("detection", _boxes(where)) for name, where in BOX_METRICS.items()},
}


def write_per_image(path: Path, results: PerImage) -> None:
    """Writes the results, whole or not at all."""
    about = {
        "version": _VERSION,
        "data": results.data,
        "images": results.images,
        "classes": results.classes,
        "ignore": results.ignore,
        "iou_thresholds": [round(float(t), 4) for t in IOU_THRESHOLDS],
    }
    buffer = io.BytesIO()
    arrays = {f"{t}.{n}": a for t, named in results.arrays.items() for n, a in named.items()}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(buffer, about=text, **arrays)  # type: ignore[arg-type]
    atomic_write_bytes(path, buffer.getvalue())


def read_per_image(path: Path) -> PerImage:
    """Reads results from a file, or from that of a run folder.

    Raises:
        InputError: missing, damaged, of a newer version, or its arrays do not fit together.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{file}: no results image by image; run "
            f"fieldsight-distill evaluate {path if path.is_dir() else 'RUN'} --data LABELLED:val"
        )
    try:
        with np.load(file, allow_pickle=False) as content:
            about = json.loads(bytes(content["about"].astype(np.uint8)))
            arrays = {k: content[k] for k in content.files if k != "about"}
        return _checked(about, arrays)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError,
        NotImplementedError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(
            f"{file}: not a readable file of results ({type(error).__name__}: {error}); "
            "evaluate the run again"
        ) from None


def _checked(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> PerImage:
    if about["version"] != _VERSION:
        raise InputError(
            f"version {about['version']}, expected {_VERSION}; evaluate the run again with this "
            "program"
        )
    if about["iou_thresholds"] != [round(float(t), 4) for t in IOU_THRESHOLDS]:
        raise InputError("other IoU thresholds than this program's; evaluate the run again")
    images = {str(t): [str(n) for n in names] for t, names in about["images"].items()}
    ignore = about["ignore"]
    results = PerImage(
        {str(k): str(v) for k, v in about["data"].items()},
        images,
        {},
        {str(t): [str(n) for n in names] for t, names in about["classes"].items()},
        None if ignore is None else int(ignore),
    )
    for task, names in images.items():
        if task not in _ARRAYS:
            raise InputError(f"unknown task {task!r}")
        named = {n: arrays[f"{task}.{n}"] for n in _ARRAYS[task]}
        _CHECKS[task](named, len(names), len(results.classes[task]))
        results.arrays[task] = named
    if not images:
        raise InputError("it holds no results")
    return results


def _expect(array: np.ndarray, shape: tuple[int, ...], kinds: str, name: str) -> None:
    if array.shape != shape or array.dtype.kind not in kinds:
        raise InputError(f"{name} is {array.dtype} {array.shape}, expected {shape}")


def _within(array: np.ndarray, end: int, name: str) -> None:
    if array.size and (array.min() < 0 or array.max() >= end):
        raise InputError(f"{name} has values outside 0 to {end - 1}")


def _check_pixels(arrays: dict[str, np.ndarray], images: int, classes: int) -> None:
    _expect(arrays["confusion"], (images, classes, classes), "iu", "confusion")
    if arrays["confusion"].size and arrays["confusion"].min() < 0:
        raise InputError("confusion has negative counts")


def _check_classes(arrays: dict[str, np.ndarray], images: int, classes: int) -> None:
    for name in ("label", "predicted"):
        _expect(arrays[name], (images,), "iu", name)
        _within(arrays[name], classes, name)


def _check_boxes(arrays: dict[str, np.ndarray], images: int, classes: int) -> None:
    found = len(arrays["score"])
    _expect(arrays["score"], (found,), "f", "score")
    for name, end in (("image", images), ("box_label", classes)):
        _expect(arrays[name], (found,), "iu", name)
        _within(arrays[name], end, name)
    for name in ("hit", "spared"):
        _expect(arrays[name], (found, len(IOU_THRESHOLDS)), "b", name)
    _expect(arrays["objects"], (images, classes), "iu", "objects")
    if arrays["objects"].size and arrays["objects"].min() < 0:
        raise InputError("objects has negative counts")
    if not np.isfinite(arrays["score"]).all():
        raise InputError("score is not finite throughout")


_CHECKS: dict[str, Callable[[dict[str, np.ndarray], int, int], None]] = {
    "segmentation": _check_pixels,
    "classification": _check_classes,
    "detection": _check_boxes,
}
