"""What the training domain's frames show: classes and objects, as the bundle tells of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edge_runtime.bundle import Bundle
from edge_runtime.decode import decode_detections
from edge_runtime.errors import BundleError
from edge_runtime.geometry import Geometry
from edge_runtime.selftest import load_canary

_OUTPUTS = ("boxes", "scores", "labels")


@dataclass(frozen=True, slots=True)
class Home:
    """The training domain; None what the bundle does not tell.

    Attributes:
        histogram: float64 [classes], pixels by class in its labels.
        objects: Objects a frame that the network finds in it, at the usual thresholds.
    """

    histogram: np.ndarray | None = None
    objects: float | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> Home:
        """Read a bundle's reference and canary; raises BundleError if they are damaged."""
        return cls(_histogram(bundle), _objects(bundle))


def _histogram(bundle: Bundle) -> np.ndarray | None:
    path = bundle.file("reference.safetensors")
    try:
        found = load_file(path).get("segmentation.histogram")
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export again") from None
    expected = len(bundle.manifest.classes.get("segmentation", []))
    if found is None or found.shape != (expected,) or not found.sum() > 0:
        return None
    return found.astype(np.float64)


def _objects(bundle: Bundle) -> float | None:
    if not bundle.has("canary.npz"):
        return None
    canary, spec = load_canary(bundle), bundle.manifest.input
    if not all(f"expected_{name}" in canary for name in _OUTPUTS):
        return None
    geometry = Geometry((spec.height, spec.width), (spec.height, spec.width))
    columns = zip(*(canary[f"expected_{name}"] for name in _OUTPUTS), strict=True)
    try:
        frames = [dict(zip(_OUTPUTS, column, strict=True)) for column in columns]
        found = [len(decode_detections(frame, geometry)) for frame in frames]
    except (ValueError, IndexError, TypeError) as error:
        path = bundle.path / "canary.npz"
        raise BundleError(f"{path}: its boxes cannot be read ({error}); export again") from None
    return float(np.mean(found)) if found else None
