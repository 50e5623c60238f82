"""How sharp a board is in a picture: the width of the edges of its squares."""

from __future__ import annotations

import cv2
import numpy as np

from calibration.camera.boards import Corners, steps

_SAMPLES = 33  # along a profile
_REACH = 0.35  # of a square's side, to each side of an edge


def edge_width(grey: np.ndarray, corners: Corners) -> float:
    """Width over which the edges between neighbouring corners rise from dark to bright.

    Each edge is crossed at its middle; its width is its contrast over its steepest slope, as in
    OpenCV's estimateChessboardSharpness, but for any set of corners. Edges along rows and along
    columns are judged apart, since motion blurs one direction only.

    Args:
        grey: uint8 [H, W].
        corners: Found in it.

    Returns:
        Pixels, the wider of the two directions' medians; NaN where no corners are neighbours.
    """
    widths = [_median_width(grey, corners.pixels, pairs) for pairs in steps(corners)]
    known = [width for width in widths if np.isfinite(width)]
    return max(known) if known else float("nan")


def _median_width(grey: np.ndarray, pixels: np.ndarray, pairs: np.ndarray) -> float:
    if not len(pairs):
        return float("nan")
    begin, end = pixels[pairs[:, 0]], pixels[pairs[:, 1]]
    along = end - begin
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * _REACH
    offsets = np.linspace(-1, 1, _SAMPLES)
    at = ((begin + end) / 2)[:, None] + across[:, None] * offsets[None, :, None]
    at = at.astype(np.float32)
    x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
    profile = cv2.remap(grey, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE).astype(float)
    step = 2 * np.linalg.norm(across, axis=1) / (_SAMPLES - 1)
    slope = np.abs(profile[:, 2:] - profile[:, :-2]).max(axis=1) / (2 * step)
    contrast = np.ptp(profile, axis=1)
    return float(np.median(contrast / np.maximum(slope, 1e-6)))
