"""Which views to calibrate from: sharp ones that differ and together cover the picture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from calibration.camera.views import Rejection, View

MOST_VIEWS = 40
GRID = (8, 6)  # columns and rows of the cells by which coverage is judged
_BLUR_FACTOR = 2.0  # times the median view's edge width
_BLUR_LEAST_PX = 4.0
_ALIKE = 0.01  # of the picture's diagonal: corners moved by less on average


def select(
    views: Sequence[View], size: tuple[int, int], most: int = MOST_VIEWS
) -> tuple[list[View], list[Rejection]]:
    """Choose views.

    Args:
        views: Candidates.
        size: (height, width) of the pictures.
        most: How many to choose at most.

    Returns:
        The chosen ones in their order, and the others with reasons.
    """
    sharp, blurred = _sharp(views)
    distinct, alike = _distinct(sharp, size)
    chosen, surplus = _covering(distinct, size, most)
    return chosen, blurred + alike + surplus


def coverage(views: Sequence[View], size: tuple[int, int]) -> float:
    """Share of the cells of `GRID` that hold a corner of any view, 0 to 1."""
    seen = set().union(*(_cells(view, size) for view in views))
    return len(seen) / (GRID[0] * GRID[1])


def _sharp(views: Sequence[View]) -> tuple[list[View], list[Rejection]]:
    typical = float(np.nanmedian([view.blur for view in views]))
    limit = max(_BLUR_LEAST_PX, _BLUR_FACTOR * typical)
    kept, rejected = [], []
    for view in views:
        if view.blur > limit:
            reason = f"edges are {view.blur:.1f} px wide, typically {typical:.1f}"
            rejected.append(Rejection(view.name, "blurred", reason))
        else:
            kept.append(view)
    return kept, rejected


def _distinct(views: Sequence[View], size: tuple[int, int]) -> tuple[list[View], list[Rejection]]:
    """Of views with their corners in nearly the same places, the sharpest."""
    near = _ALIKE * float(np.hypot(*size))
    kept: list[View] = []
    rejected = []
    for view in sorted(views, key=lambda view: (-len(view.cells), view.blur)):
        twin = next((other for other in kept if _moved(view, other) < near), None)
        if twin is None:
            kept.append(view)
        else:
            reason = f"nearly the same view as {twin.name}"
            rejected.append(Rejection(view.name, "duplicate", reason))
    order = {view.name: index for index, view in enumerate(views)}
    return sorted(kept, key=lambda view: order[view.name]), rejected


def _moved(one: View, other: View) -> float:
    """Mean distance in pixels of the corners that both show; infinite if they share few."""
    if np.array_equal(one.cells, other.cells):
        return float(np.linalg.norm(one.pixels - other.pixels, axis=1).mean())
    where = {tuple(cell): pixel for cell, pixel in zip(one.cells, one.pixels, strict=True)}
    pairs = [
        (where[tuple(cell)], pixel)
        for cell, pixel in zip(other.cells, other.pixels, strict=True)
        if tuple(cell) in where
    ]
    if len(pairs) < min(len(one.cells), len(other.cells)) / 2:
        return float("inf")
    a, b = np.array(pairs).transpose(1, 0, 2)
    return float(np.linalg.norm(a - b, axis=1).mean())


def _covering(
    views: Sequence[View], size: tuple[int, int], most: int
) -> tuple[list[View], list[Rejection]]:
    """Greedily the view that shows new cells of the picture and the board as never before."""
    if len(views) <= most:
        return list(views), []
    looks = np.array([_look(view, size) for view in views])
    cells = [_cells(view, size) for view in views]
    chosen = [int(np.argmax([len(seen) for seen in cells]))]
    seen = set(cells[chosen[0]])
    apart = np.abs(looks - looks[chosen[0]]).sum(axis=1)
    while len(chosen) < most:
        new = np.array([len(found - seen) for found in cells]) / (GRID[0] * GRID[1])
        gain = new + apart
        gain[chosen] = -1
        best = int(np.argmax(gain))
        chosen.append(best)
        seen |= cells[best]
        apart = np.minimum(apart, np.abs(looks - looks[best]).sum(axis=1))
    reason = f"{most} views that differ more are enough"
    left = [Rejection(v.name, "surplus", reason) for i, v in enumerate(views) if i not in chosen]
    return [views[index] for index in sorted(chosen)], left


def _cells(view: View, size: tuple[int, int]) -> set[tuple[int, int]]:
    at = (view.pixels + 0.5) / [size[1], size[0]] * GRID
    at = np.clip(at.astype(int), 0, np.array(GRID) - 1)
    return {(int(x), int(y)) for x, y in at}


def _look(view: View, size: tuple[int, int]) -> np.ndarray:
    """Place x, y, size and tilt x, y of the board in a picture, each about 0 to 1."""
    pixels = view.pixels / size[1]
    area = cv2.contourArea(cv2.convexHull(pixels.astype(np.float32)))
    flat = view.points[:, :2] - view.points[:, :2].mean(axis=0)
    homography, _ = cv2.findHomography(flat / np.abs(flat).max(), pixels)
    tilt = homography[2, :2] if homography is not None else np.zeros(2)
    return np.array([*pixels.mean(axis=0), np.sqrt(area), *np.clip(tilt, -1, 1)])
