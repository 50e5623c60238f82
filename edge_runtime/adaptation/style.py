"""Rehearsal in the looks of a place: labelled source frames with its light, sharpness and noise.

Two classical measures are matched, neither of which knows what happened to the camera. Colours: the
distribution of each channel, by histogram specification (Gonzalez & Woods, Digital Image
Processing, 3.3.2). Sharpness and noise: the power at each spatial frequency, after Fourier domain
adaptation (Yang & Soatto, CVPR 2020), which also exchanges amplitudes and keeps phases; here one
average over the place's frames replaces the swap between two images, what a place lacks is filtered
out, and what it has in excess at high frequencies is added as noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 48  # rings of spatial frequency, 0 to 0.5 cycles per pixel
COARSE = 0.04  # cycles per pixel below which power is the scene, and its mean, not its sharpness
FINE = 0.2  # cycles per pixel from which excess power counts as noise
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

    @classmethod
    def fit(cls, place: np.ndarray, source: np.ndarray) -> PlaceStyle:
        """Measure a place.

        Args:
            place: uint8 [N, H, W, 3], frames of the place.
            source: uint8 [M, H, W, 3], frames of the training domain.
        """
        curves = np.stack([curve(place[..., c], source[..., c]) for c in range(3)])
        wanted = np.mean([spectrum(f) for f in place], 0)
        found = np.mean([spectrum(repaint(f, curves)) for f in source], 0)
        gain = np.clip(np.sqrt(wanted / np.maximum(found, 1e-9)), LEAST_GAIN, 1)
        frequency = np.linspace(0, 0.5, BINS)
        gain[:, frequency < COARSE] = 1
        fine = frequency >= FINE
        noise = np.where(fine, np.maximum(wanted - found * gain**2, 0), 0)
        return cls(curves.astype(np.float32), gain.astype(np.float32), noise.astype(np.float32))

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
        gain = 1 + strength * (self.gain[:, ring] - 1)
        white = rng.standard_normal(image.shape)
        grain = np.fft.rfft2(white, axes=(0, 1)) * np.moveaxis(np.sqrt(self.noise)[:, ring], 0, -1)
        waves = np.fft.rfft2(painted, axes=(0, 1)) * np.moveaxis(gain, 0, -1)
        result = np.fft.irfft2(waves + strength * grain, s=image.shape[:2], axes=(0, 1))
        return np.clip(result, 0, 255).astype(np.float32)


def curve(place: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Monotone map of grey levels [256] that gives the source the place's histogram."""
    shares = []
    for values in (place, source):
        counts = np.bincount(values.ravel(), minlength=256).astype(np.float64) + 1e-3
        shares.append((np.cumsum(counts) - counts / 2) / counts.sum())
    return np.interp(shares[1], shares[0], np.arange(256))


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
