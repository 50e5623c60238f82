"""How straight the board's rows and columns are in a picture, before and after undistortion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.camera.views import View
from edge_runtime.lens import Lens

_LEAST = 3  # corners of a line: two are always straight


@dataclass(frozen=True, slots=True)
class Straightness:
    """RMS distance in pixels of corners to the best-fit line of their row or column.

    Attributes:
        before: In the raw pictures.
        after: Undistorted, at the raw pictures' scale.
        lines: How many rows and columns were measured.
    """

    before: float
    after: float
    lines: int


def measure(views: Sequence[View], lens: Lens) -> Straightness:
    """Measure all rows and columns of all views.

    Args:
        views: Of a flat board: what bends its lines is the lens.
        lens: To undo; at the size of the views' pictures.
    """
    scale = np.diag(lens.matrix)[:2] / np.diag(lens.view)[:2]
    before, after = [], []
    for view in views:
        raw = view.pixels + 0.5
        straight = lens.undistort(raw) * scale
        for line in lines_of(view):
            if np.isfinite(straight[line]).all():
                before.append(off_line(raw[line]))
                after.append(off_line(straight[line]))
    if not before:
        return Straightness(float("nan"), float("nan"), 0)
    raw_rms, straight_rms = (float(np.sqrt(np.concatenate(d).mean())) for d in (before, after))
    return Straightness(raw_rms, straight_rms, len(before))


def lines_of(view: View) -> Iterator[np.ndarray]:
    """Indices into a view's corners of each row and each column, in order along it."""
    for axis in (0, 1):
        for value in np.unique(view.cells[:, axis]):
            line = np.flatnonzero(view.cells[:, axis] == value)
            if len(line) >= _LEAST:
                yield line[np.argsort(view.cells[line, 1 - axis])]


def off_line(points: np.ndarray) -> np.ndarray:
    """float64 [N]: squared distances of points [N, 2] to the line that makes their sum least."""
    centred = points - points.mean(axis=0)
    normal = np.linalg.svd(centred, full_matrices=False)[2][1]
    return (centred @ normal) ** 2
