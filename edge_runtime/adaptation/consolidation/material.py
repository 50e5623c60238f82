"""Reads what a consolidation works on: the place's frames and the bundle's own.

Where the bundle has frames to rehearse, they are learnt from and the whole canary judges; else the
canary is divided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
from edge_runtime.selftest import load_canary, load_frames

REHEARSAL = "rehearsal.npz"
LEAST_FRAMES = 4
MOST_FRAMES = 512  # spread evenly where there are more: 126 MB at 256x320
_KEPT_OUT_PLACE, _KEPT_OUT_CANARY = 8, 4  # every so many-th frame is not learnt from
_UNLABELLED = 255


@dataclass(frozen=True)
class Material:
    """Frames to learn from and frames to judge by, at the network's size.

    Attributes:
        place: uint8 [N, H, W, 3], in the order of the memory.
        source: uint8 [M, H, W, 3], frames of the training domain.
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
    """Read a memory of frames and what the bundle has to rehearse, and divide both.

    Args:
        bundle: The bundle to be consolidated.
        memory: A frame memory, an image folder, a video, or ``dataset.yaml:SPLIT``, whose labels
            are not read.

    Raises:
        InputError: There are too few frames.
        BundleError: What the bundle has cannot be rehearsed.
    """
    frames = _read_frames(bundle, memory)
    classes = len(bundle.manifest.classes.get("segmentation", []))
    source, judged = _own_frames(bundle)
    unseen = np.arange(len(frames)) % _KEPT_OUT_PLACE == _KEPT_OUT_PLACE // 2
    masks = source["masks"] if classes else None
    kept_out = KeptOut(
        judged["images"],
        judged["masks"] if classes else None,
        judged.get("boxes"),
        frames[unseen],
        classes,
    )
    return Material(
        frames[~unseen],
        source["images"],
        masks,
        None if masks is None else class_weight(bundle, masks, classes),
        kept_out,
        hashlib.sha256(frames.tobytes()).hexdigest(),
    )


def _own_frames(bundle: Bundle) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The bundle's frames to rehearse and to judge by: images, masks and boxes, checked."""
    if not bundle.has(REHEARSAL):
        return divided_canary(bundle)
    frames = load_frames(bundle, REHEARSAL), load_canary(bundle)
    check_labels(bundle, REHEARSAL, frames[0])
    check_labels(bundle, "canary.npz", frames[1])
    return frames


def divided_canary(bundle: Bundle) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images, masks and boxes of the canary to rehearse, three of four, and to judge by.

    Raises:
        BundleError: It has too few frames, or no usable labels.
    """
    canary = load_canary(bundle)
    check_labels(bundle, "canary.npz", canary)
    if len(canary["images"]) < _KEPT_OUT_CANARY:
        raise BundleError(
            f"{bundle.file('canary.npz')}: {len(canary['images'])} frames, expected at least "
            f"{_KEPT_OUT_CANARY} to rehearse and to judge by; export the bundle again"
        )
    judged = np.arange(len(canary["images"])) % _KEPT_OUT_CANARY == _KEPT_OUT_CANARY - 1
    parts = {name: canary[name] for name in ("images", "masks", "boxes") if name in canary}
    return {n: a[~judged] for n, a in parts.items()}, {n: a[judged] for n, a in parts.items()}


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


def check_labels(bundle: Bundle, name: str, frames: Mapping[str, np.ndarray]) -> None:
    """Whether one of a bundle's archives of frames has the labels that rehearsal needs.

    Raises:
        BundleError: A task's labels are missing or unusable.
    """
    images, masks, boxes = frames["images"], frames.get("masks"), frames.get("boxes")
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
    for task, labels in (("segmentation", "masks"), ("detection", "boxes")):
        if task in bundle.manifest.tasks and not good[labels]:
            raise BundleError(
                f"{bundle.file(name)}: has no usable labels '{labels}', so forgetting could not be "
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
