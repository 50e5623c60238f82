"""Frames that say nothing about the world: of a camera that is broken, covered or blinded.

They are never learned from. Each check looks at a grid of pixels, so that all of them together
cost a small part of a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_runtime.frames import Frame

_GRID = 48  # pixels looked at along the shorter side, at least
_ALL = 0.99  # share of values that makes an image black or white
_CELLS = 8  # along each side, for what covers a part of the view
_COVERED = 0.35  # share of cells without any texture
_BRIGHTER = 12  # grey levels by which the rest must differ from what covers it
_SATURATED = 0.7  # share of values at either end of the range

Check = Callable[[np.ndarray, np.ndarray | None], bool]
_CHECKS: dict[str, Check] = {}


def _check(name: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        _CHECKS[name] = check
        return check

    return register


def fault_of(frame: Frame, previous: Frame | None) -> str | None:
    """What is wrong with a frame, or None.

    Args:
        frame: The frame.
        previous: The one before it, if any.

    Returns:
        "black", "white", "flat" (one colour), "frozen" (the same as before), "saturated" or
        "occluded" (a large part of the view has no texture at all).
    """
    pixels = _thinned(frame.image)
    before = _thinned(previous.image) if previous and may_be_frozen(frame, previous) else None
    return next((name for name, check in _CHECKS.items() if check(pixels, before)), None)


def may_be_frozen(frame: Frame, previous: Frame) -> bool:
    """Whether the middle rows of both are the same, which they are of next to no other frames."""
    if previous.image.shape != frame.image.shape:
        return False
    middle = len(frame.image) // 2
    return bool((frame.image[middle] == previous.image[middle]).all())


def _thinned(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel, uint8 [3, h, w]: channels first, for rows copy faster than pixels."""
    step = max(1, min(image.shape[:2]) // _GRID)
    return np.ascontiguousarray(image[::step, ::step].transpose(2, 0, 1))


def _share(where: np.ndarray) -> float:
    """Share of places that are true; counting them is far cheaper than their mean."""
    return int(np.count_nonzero(where)) / where.size


@_check("black")
def _black(pixels: np.ndarray, _before: np.ndarray | None) -> bool:
    return _share(pixels <= 4) >= _ALL


@_check("white")
def _white(pixels: np.ndarray, _before: np.ndarray | None) -> bool:
    return _share(pixels >= 250) >= _ALL


@_check("flat")
def _flat(pixels: np.ndarray, _before: np.ndarray | None) -> bool:
    spans = (int(pixels[c].max()) - int(pixels[c].min()) for c in (1, 0, 2))  # green tells of most
    return all(span <= 4 for span in spans)


@_check("frozen")
def _frozen(pixels: np.ndarray, before: np.ndarray | None) -> bool:
    return before is not None and bool((pixels == before).all())


@_check("saturated")
def _saturated(pixels: np.ndarray, _before: np.ndarray | None) -> bool:
    return _share(pixels <= 1) + _share(pixels >= 254) >= _SATURATED


@_check("occluded")
def _occluded(pixels: np.ndarray, _before: np.ndarray | None) -> bool:
    height, width = (size // _CELLS for size in pixels.shape[1:])
    if not height or not width:
        return False
    grey = pixels[1, : height * _CELLS, : width * _CELLS]  # green: most of the light
    cells = grey.reshape(_CELLS, height, _CELLS, width)
    bare = cells.max(1).max(-1) - cells.min(1).min(-1) <= 1
    if _share(bare) < _COVERED or bare.all():
        return False
    cells = cells.swapaxes(1, 2)
    covering, rest = np.median(cells[bare]), cells[~bare].mean()
    return bool(covering < rest - _BRIGHTER)  # an overexposed sky is brighter than the rest
