"""What an image looks like, whatever it shows: its tones, and its detail at three scales.

Read off the pixels alone, so that neither the network's precision nor the adapter in use changes
it. Tones come from a shrunken image, where noise averages out. Detail is that of the Haar wavelet
(Mallat, IEEE Trans. PAMI 1989): noise is even and fine, a scene's edges are sparse and coarse too,
blur takes the fine ones, fog and darkness all.
"""

from __future__ import annotations

import cv2
import numpy as np

from edge_runtime.errors import InputError

_SHRUNK = 8  # pixels averaged along each side before tones are read
_QUANTILES = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
_SCALES = 3  # octaves of detail
_LEAST = 0.5  # grey levels of detail below which nothing is told apart
SIZE = 3 * (2 * len(_QUANTILES) + 3 * _SCALES)
LEAST_SIDE = 2 * _SHRUNK  # pixels


def describe(image: np.ndarray) -> np.ndarray:
    """Describe an image.

    Args:
        image: uint8 [H, W, 3], RGB, each side a multiple of 8 and at least `LEAST_SIDE` pixels.

    Returns:
        float32 [SIZE], values of order one: of each channel quantiles, plain and logarithmic, then
        for each scale mean diagonal detail, its mean square root squared (the lower beside the
        mean, the sparser), and mean horizontal and vertical detail, all logarithmic.
    """
    height, width = image.shape[:2]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image is {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
    if min(height, width) < LEAST_SIDE or height % _SHRUNK or width % _SHRUNK:
        raise InputError(
            f"image is {height}x{width}, expected sides that are multiples of {_SHRUNK} and at "
            f"least {LEAST_SIDE}"
        )
    size = width // _SHRUNK, height // _SHRUNK
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(-1, 3)
    levels = np.sort(shrunk.astype(np.float32), axis=0)
    tones = levels[(_QUANTILES * (len(levels) - 1)).astype(int)].ravel()
    return np.concatenate([tones / 255, np.log(tones + 1) / 3, _detail(image) / 3])


def _detail(image: np.ndarray) -> np.ndarray:
    """Logarithms of Haar detail, float32 [9 * scales]: three measures of three channels each."""
    found, planes = [], [plane.astype(np.float32) for plane in cv2.split(image)]
    for _ in range(_SCALES):
        measured, planes = zip(*map(_haar, planes), strict=True)
        diagonal, roots, across = np.array(measured, np.float32).T + _LEAST
        found += [np.log(diagonal), 2 * np.log(roots), np.log(across)]
    return np.concatenate(found)


def _haar(plane: np.ndarray) -> tuple[tuple[float, float, float], np.ndarray]:
    """Means of a channel's diagonal detail, of its square root, and of horizontal detail.

    Args:
        plane: float32 [H, W].

    Returns:
        The three, and the channel at half the resolution.
    """
    upper, lower = plane[0::2], plane[1::2]
    both, apart = upper + lower, upper - lower
    left, right = both[:, 0::2], both[:, 1::2]
    diagonal = np.abs(apart[:, 0::2] - apart[:, 1::2])
    kinds = diagonal, cv2.sqrt(diagonal), np.abs(left - right)
    first, second, third = (cv2.mean(kind)[0] for kind in kinds)
    return (first, second, third), (left + right) * 0.25
