"""A place's looks: light, sharpness and noise, and how to give them to a source image.

Two classical measures are matched, neither of which knows what happened to the camera. Light: grey
levels are mapped as in histogram specification (Gonzalez & Woods, Digital Image Processing, 3.3.2).
Sharpness and noise: the power at each spatial frequency, after Fourier domain adaptation (Yang &
Soatto, CVPR 2020), which also exchanges amplitudes and keeps phases; here one average over the
place's frames replaces the swap between two images, what a place lacks is filtered out, and what it
has in excess is added as noise. `looks.py` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 48  # rings of spatial frequency, 0 to 0.5 cycles per pixel
COARSE = 0.04  # cycles per pixel below which power is the scene, and its mean, not its sharpness
LEAST_GAIN = 0.02


@dataclass(frozen=True)
class PlaceStyle:
    """How a place's frames look beside the source's.

    Attributes:
        curves: float32 [3, 256], the place's grey level for each of the source's.
        gain: float32 [3, BINS], factor on the amplitude of each ring, at most 1.
        noise: float32 [3, BINS], power of each ring that has to be added.
    """

    curves: np.ndarray
    gain: np.ndarray
    noise: np.ndarray

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, strength: float = 1.0
    ) -> np.ndarray:
        """Give a source image the looks of the place.

        Args:
            image: uint8 [H, W, 3].
            rng: For the noise.
            strength: 0 leaves the image as it is, 1 goes all the way.

        Returns:
            float32 [H, W, 3], 0 to 255.
        """
        painted = image + strength * (repaint(image, self.curves) - image)
        ring = rings(image.shape[:2])
        gain = self.gain[:, ring] ** strength  # of a Gaussian, so much of its variance
        white = rng.standard_normal(image.shape)
        grain = np.fft.rfft2(white, axes=(0, 1)) * np.moveaxis(np.sqrt(self.noise)[:, ring], 0, -1)
        waves = np.fft.rfft2(painted, axes=(0, 1)) * np.moveaxis(gain, 0, -1)
        result = np.fft.irfft2(waves + strength * grain, s=image.shape[:2], axes=(0, 1))
        return np.clip(result, 0, 255).astype(np.float32)


def repaint(image: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """An image uint8 [H, W, 3] with each channel's grey levels mapped by curves [3, 256]."""
    return np.stack([curves[c][image[..., c]] for c in range(3)], -1)


def rings(size: tuple[int, int]) -> np.ndarray:
    """Ring of each coefficient of a real two-dimensional transform, [H, W // 2 + 1]."""
    radius = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    return np.minimum((radius / 0.5 * (BINS - 1)).round().astype(int), BINS - 1)


def spectrum(image: np.ndarray) -> np.ndarray:
    """Mean power per pixel in each ring, [3, BINS]; windowed, as opposite borders differ."""
    size = image.shape[:2]
    window = np.outer(np.hanning(size[0]), np.hanning(size[1]))
    window /= np.sqrt((window**2).mean())
    values = (image - image.mean((0, 1))) * window[..., None]
    power = np.abs(np.fft.rfft2(values, axes=(0, 1))) ** 2 / window.size
    ring = rings((size[0], size[1])).ravel()
    sums = [np.bincount(ring, power[..., c].ravel(), BINS) for c in range(3)]
    return np.stack(sums) / np.maximum(np.bincount(ring, minlength=BINS), 1)
