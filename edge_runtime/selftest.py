"""The canary: does this engine, on this machine, give what the network gave at export?"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.engines import Engine
from edge_runtime.errors import BundleError, RefusedError

_SURE = 0.3  # expected boxes of at least this score must be found again


@dataclass(frozen=True, slots=True)
class _Tolerance:
    """Least shares of equal mask pixels and of boxes found again at this IoU; score distance."""

    mask: float
    boxes: float
    iou: float
    score: float


_FLOAT = _Tolerance(mask=0.99, boxes=0.95, iou=0.9, score=0.05)
_INT8 = _Tolerance(mask=0.90, boxes=0.80, iou=0.5, score=0.2)


def run_canary(bundle: Bundle, engine: Engine) -> dict[str, float]:
    """Run the bundle's canary frames with the identity adapter and compare the outputs.

    Args:
        bundle: Its `canary.npz` holds `images` uint8 [N, H, W, 3] at network size and
            `expected_<output>` with leading N for each output.
        engine: The engine to test.

    Returns:
        "frames", and of the tasks' outputs "mask_agreement" (share of equal pixels) and
        "boxes_found" (share of confident boxes found again).

    Raises:
        RefusedError: An agreement is below what the precision allows, or a value is not finite.
    """
    canary = load_canary(bundle)
    tolerance = _INT8 if "int8" in engine.name else _FLOAT
    adapter = identity_adapter(bundle.manifest)
    masks: list[float] = []
    found = [0, 0]
    for index, image in enumerate(canary["images"]):
        outputs = engine.infer({"image": image[None], "adapter": adapter})
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RefusedError(f"self-test: output '{name}' of {engine.name} is not finite")
        expected = {
            name: canary[key][index] for name in outputs if (key := f"expected_{name}") in canary
        }
        if "mask" in expected:
            masks.append(float((expected["mask"] == outputs["mask"]).mean()))
        if {"boxes", "scores", "labels"} <= expected.keys():
            hits, total = boxes_found(expected, outputs, tolerance.iou, tolerance.score)
            found[0] += hits
            found[1] += total
    report = {"frames": float(len(canary["images"]))}
    if masks:
        report["mask_agreement"] = float(np.mean(masks))
        _require("mask pixels", report["mask_agreement"], tolerance.mask, engine)
    if found[1]:
        report["boxes_found"] = found[0] / found[1]
        _require("boxes", report["boxes_found"], tolerance.boxes, engine)
    return report


def _require(what: str, share: float, least: float, engine: Engine) -> None:
    if share < least:
        raise RefusedError(
            f"self-test: {engine.name} agrees with the export on {share:.1%} of the {what}, "
            f"expected at least {least:.1%}; do not use this engine, export the bundle again"
        )


def load_canary(bundle: Bundle) -> dict[str, np.ndarray]:
    """The arrays of a bundle's `canary.npz`; see `load_frames`."""
    if not bundle.has("canary.npz"):
        raise BundleError(f"{bundle.path}: no canary.npz, so no self-test; export it again")
    return load_frames(bundle, "canary.npz")


def load_frames(bundle: Bundle, name: str) -> dict[str, np.ndarray]:
    """The arrays of one of a bundle's archives of frames.

    Returns:
        `images` uint8 [N, H, W, 3] at the network's size, N at least 1, and what else it holds.

    Raises:
        BundleError: It is damaged, or of another size.
    """
    path = bundle.file(name)
    try:
        with np.load(path, allow_pickle=False) as archive:
            frames = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    spec = bundle.manifest.input
    images = frames.get("images")
    if images is None or images.dtype != np.uint8 or len(images) == 0:
        raise BundleError(f"{path}: holds no uint8 'images'; export it again")
    if images.shape[1:] != (spec.height, spec.width, 3):
        raise BundleError(
            f"{path}: images are {images.shape[1:]}, "
            f"expected {(spec.height, spec.width, 3)}; export it again"
        )
    return frames


def boxes_found(
    expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], iou: float, score: float
) -> tuple[int, int]:
    """How many confident boxes have a counterpart, of how many.

    Args:
        expected: `boxes` float [K, 4] xyxy, `scores` [K], `labels` [K]; those that score at least
            0.3 count.
        outputs: The same of another network; any of its boxes may be a counterpart.
        iou: Least overlap of counterparts, which are of one class.
        score: Most their scores may differ.
    """
    sure = expected["scores"] >= _SURE
    hits = 0
    for box, value, label in zip(
        expected["boxes"][sure], expected["scores"][sure], expected["labels"][sure], strict=True
    ):
        alike = (outputs["labels"] == label) & (np.abs(outputs["scores"] - value) <= score)
        hits += bool((_iou(box, outputs["boxes"][alike]) >= iou).any())
    return hits, int(sure.sum())


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one xyxy box [4] with each of boxes [N, 4]."""
    shared = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
    area = shared.prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - area
    return area / np.maximum(union, 1e-9)
