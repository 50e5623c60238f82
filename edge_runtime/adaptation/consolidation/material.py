"""Reads what a consolidation works on: the place's frames and the bundle's canary."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edge_runtime.adaptation.consolidation.acceptance import KeptOut
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError, InputError
from edge_runtime.geometry import Geometry
from edge_runtime.prediction import open_frames
from edge_runtime.selftest import load_canary

LEAST_FRAMES = 4
MOST_FRAMES = 512  # spread evenly where there are more: 126 MB at 256x320
_KEPT_OUT_PLACE, _KEPT_OUT_CANARY = 8, 4  # every so many-th frame is not learnt from
_UNLABELLED = 255


@dataclass(frozen=True)
class Material:
    """Frames to learn from and frames to judge by, at the network's size.

    Attributes:
        place: uint8 [N, H, W, 3], in the order of the memory.
        source: uint8 [M, H, W, 3], canary frames.
        masks: uint8 [M, H, W], their labels, or None.
        class_weight: float32 [C], or None without segmentation.
        kept_out: The frames to judge by.
        digest: Hex SHA-256 of all frames of the place.
    """

    place: np.ndarray
    source: np.ndarray
    masks: np.ndarray | None
    class_weight: np.ndarray | None
    kept_out: KeptOut
    digest: str


def read_material(bundle: Bundle, memory: Path | str) -> Material:
    """Read a memory of frames and divide it and the canary.

    Args:
        bundle: The bundle to be consolidated.
        memory: A frame memory, an image folder, a video, or ``dataset.yaml:SPLIT``, whose labels
            are not read.

    Raises:
        InputError: There are too few frames.
        BundleError: The canary cannot be rehearsed.
    """
    frames = _read_frames(bundle, memory)
    canary = load_canary(bundle)
    images, masks, boxes = canary["images"], canary.get("masks"), canary.get("boxes")
    classes = len(bundle.manifest.classes.get("segmentation", []))
    check_canary(bundle, images, masks, boxes)
    judged = np.arange(len(images)) % _KEPT_OUT_CANARY == _KEPT_OUT_CANARY - 1
    unseen = np.arange(len(frames)) % _KEPT_OUT_PLACE == _KEPT_OUT_PLACE // 2
    if not classes:
        masks = None
    kept_out = KeptOut(
        images[judged],
        None if masks is None else masks[judged],
        None if boxes is None else boxes[judged],
        frames[unseen],
        classes,
    )
    return Material(
        frames[~unseen],
        images[~judged],
        None if masks is None else masks[~judged],
        None if masks is None else class_weight(bundle, masks, classes),
        kept_out,
        hashlib.sha256(frames.tobytes()).hexdigest(),
    )


def _read_frames(bundle: Bundle, memory: Path | str) -> np.ndarray:
    spec = bundle.manifest.input
    size = spec.height, spec.width
    with open_frames(str(memory)) as source:
        step = max(1, -(-(source.length or 0) // MOST_FRAMES))
        images: list[np.ndarray] = []
        for index, frame in enumerate(source):
            if index % step or len(images) >= MOST_FRAMES:
                continue
            raw = frame.image.shape[0], frame.image.shape[1]
            geometry = Geometry(raw, size, spec.resize, bundle.manifest.camera)
            image = np.zeros((*size, 3), np.uint8)
            geometry.to_network(frame.image, out=image)
            images.append(image)
    if len(images) < LEAST_FRAMES:
        raise InputError(
            f"{memory}: {len(images)} readable frames, expected at least {LEAST_FRAMES}; "
            "let the robot see more of the place first"
        )
    return np.stack(images)


def check_canary(
    bundle: Bundle, images: np.ndarray, masks: np.ndarray | None, boxes: np.ndarray | None
) -> None:
    """Whether a canary can be rehearsed.

    Raises:
        BundleError: It has too few frames, or a task's labels are missing.
    """
    path = bundle.file("canary.npz")
    if len(images) < _KEPT_OUT_CANARY:
        raise BundleError(
            f"{path}: {len(images)} frames, expected at least {_KEPT_OUT_CANARY} to rehearse and "
            "to judge by; export the bundle again"
        )
    good = {
        "masks": masks is not None
        and masks.dtype == np.uint8
        and masks.shape == images.shape[:3]
        and bool((masks != _UNLABELLED).any()),
        "boxes": boxes is not None
        and boxes.ndim == 3
        and boxes.shape[::2] == (len(images), 5)
        and bool(np.isfinite(boxes).all()),
    }
    for task, name in (("segmentation", "masks"), ("detection", "boxes")):
        if task in bundle.manifest.tasks and not good[name]:
            raise BundleError(
                f"{path}: the canary has no usable labels '{name}', so forgetting could not be "
                "noticed; export the bundle again from labelled data"
            )


def class_weight(bundle: Bundle, masks: np.ndarray, classes: int) -> np.ndarray:
    """Inverse square root of each class's share in the training domain, one on average."""
    path = bundle.file("reference.safetensors")
    try:
        counts = load_file(path).get("segmentation.histogram")
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export again") from None
    if counts is None or counts.shape != (classes,) or not counts.sum() > 0:
        counts = np.bincount(masks.ravel(), minlength=256)[:classes]
    share = counts / counts.sum()
    weight = (share + 1e-3) ** -0.5
    return (weight / (weight * share).sum()).astype(np.float32)
