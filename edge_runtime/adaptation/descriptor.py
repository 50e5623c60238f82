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
    found, coarse = [], image.astype(np.float32)
    for _ in range(_SCALES):
        a, b = coarse[0::2, 0::2], coarse[0::2, 1::2]
        c, d = coarse[1::2, 0::2], coarse[1::2, 1::2]
        upper, lower = a - b, c - d
        diagonal = np.abs(upper - lower).reshape(-1, 3)
        across = np.abs(upper + lower).reshape(-1, 3)
        found += [
            np.log(diagonal.mean(0) + _LEAST),
            2 * np.log(np.sqrt(diagonal).mean(0) + _LEAST),
            np.log(across.mean(0) + _LEAST),
        ]
        coarse = (a + b + c + d) * 0.25
    return np.concatenate(found)
