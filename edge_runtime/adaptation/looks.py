"""Which looks explain a place: measured on unlabelled frames, by synthesis, the simplest first.

Source frames are painted until they look like the place's. What differs between the two is partly
the place's looks and partly what there is to see in it: a street in the shade has the histogram of
a street in less light. So an explanation is the simplest one that suffices (Occam's razor): noise
and sharpness alone, if source frames with that noise have the features of the place as nearly as
source sequences have each other's; new light only where it explains much more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from edge_runtime.adaptation.style import (
    BINS,
    COARSE,
    LEAST_GAIN,
    PlaceStyle,
    repaint,
    spectrum,
)

_FINEST = 0.35  # cycles per pixel, from which power beyond the scene's tells the level of noise
_SHRUNK = 8  # pixels averaged along each side before light is measured, so that noise is no light
_QUANTILES = np.linspace(0.005, 0.995, 100)
_ROUNDS = 3  # of painting, looking and correcting
_MUCH = 0.5  # share of the distance that new light has to take away to be believed
FARTHEST = 4.0  # times the drift threshold: looks that leave more explain nothing


@dataclass(frozen=True)
class Explanation:
    """Looks, and how far source frames in these looks are from the place, in drift thresholds."""

    style: PlaceStyle
    distance: float

    @property
    def suffices(self) -> bool:
        """Whether they explain the place well enough to learn from them."""
        return self.distance <= FARTHEST

    @property
    def lit(self) -> bool:
        """Whether they hold new light, which scenes of their own brightness may have feigned."""
        return bool((self.style.curves != np.arange(256)).any())

    def paint(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A source image uint8 [H, W, 3] as the place's camera would give it, uint8."""
        return paint(self.style, image, rng)


def explain(
    place: np.ndarray, source: np.ndarray, distance: Callable[[np.ndarray], float]
) -> Explanation:
    """The simplest looks that explain a place.

    Args:
        place: uint8 [N, H, W, 3], frames of the place.
        source: uint8 [M, H, W, 3], frames of the training domain.
        distance: From images uint8 [M, H, W, 3] to the place, in drift thresholds.
    """

    def found(light: bool) -> Explanation:
        style = measure(place, source, light)
        rng = np.random.default_rng(0)
        return Explanation(style, distance(np.stack([paint(style, x, rng) for x in source])))

    plain = found(light=False)
    if plain.distance <= 1:
        return plain
    lit = found(light=True)
    return lit if lit.distance < _MUCH * plain.distance else plain


def measure(place: np.ndarray, source: np.ndarray, light: bool) -> PlaceStyle:
    """Measure a place by painting source frames and correcting what still differs.

    Light is measured by quantiles of shrunken images, where noise averages out.
    Noise is taken for white: sensors' is, and at coarse scales it cannot be told from the scene.

    Args:
        place: uint8 [N, H, W, 3].
        source: uint8 [M, H, W, 3].
        light: Whether the place's light may differ.
    """
    rng, wanted, aim = np.random.default_rng(0), _power(place), _shrunk(place)
    frequency = np.linspace(0, 0.5, BINS)
    curves, level, painted = np.tile(np.arange(256.0), (3, 1)), np.zeros(3), source
    for turn in range(_ROUNDS):
        if light:
            now = _shrunk(painted)
            for c in range(3):
                curves[c] = _toned(curves[c], now[..., c], aim[..., c])
        scene = np.mean([spectrum(repaint(image, curves)) for image in source], 0)
        gain = np.clip(np.sqrt(wanted / np.maximum(scene, 1e-9)), LEAST_GAIN, 1)
        gain[:, frequency < COARSE] = 1
        lacking = wanted - (scene * gain**2 if turn == 0 else _power(painted))
        level = np.maximum(level + np.median(lacking[:, frequency >= _FINEST], axis=1), 0)
        noise = np.repeat(level[:, None], BINS, axis=1)
        style = PlaceStyle(*(a.astype(np.float32) for a in (curves, gain, noise)))
        painted = np.stack([paint(style, image, rng) for image in source])
    return style


def paint(style: PlaceStyle, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image in a style, uint8 [H, W, 3]: in the dark a camera has few grey levels left."""
    return np.rint(style(image, rng)).astype(np.uint8)


def _power(images: np.ndarray) -> np.ndarray:
    return np.mean([spectrum(image) for image in images], 0)


def _toned(levels: np.ndarray, now: np.ndarray, aim: np.ndarray) -> np.ndarray:
    """Grey levels [256] mapped so that quantiles of `now` become those of `aim`.

    Levels beyond both ends go on along the line between them: shrunken images lack extremes.
    """
    low, *_, high = seen = np.quantile(now, _QUANTILES)
    wanted = np.quantile(aim, _QUANTILES)
    slope = (wanted[-1] - wanted[0]) / max(high - low, 1.0)
    below, above = np.minimum(levels - low, 0), np.maximum(levels - high, 0)
    found = np.interp(levels, seen, wanted) + slope * (below + above)
    return np.clip(np.maximum.accumulate(found), 0, 255)


def _shrunk(images: np.ndarray) -> np.ndarray:
    size = images.shape[2] // _SHRUNK, images.shape[1] // _SHRUNK
    return np.stack([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in images])
