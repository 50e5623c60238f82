"""Random looks: how the same scene might come from a camera in another light, weather or state.

Domain randomisation (Tobin et al., IROS 2017) of what happens between scene and pixels: exposure
and colour of the light, a tone curve, defocus, stray light of a medium that need not be equally
thick everywhere (Koschmieder's law), the sensor's noise. Most are drawn by themselves, so that some
looks have several and one in six has none; but what is dark often has the noise of a sensor that
is turned up, and shadows that its tone curve swallows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

_DARKEST = 3.3  # of log exposure
_DEEPEST = 4.2  # of a channel's log gain
_THICKEST = 4.2  # optical thickness of the medium
_BLURRIEST = 1 / 53  # standard deviation, as share of the image's width
_NOISIEST = 60.0  # grey levels


@dataclass(frozen=True)
class Look:
    """What a camera makes of a scene.

    Attributes:
        gain: float [3], factor on each channel.
        gamma: Exponent of the tone curve.
        blur: Standard deviation of the defocus, as share of the image's width.
        thickness: Optical thickness of the medium in the image's middle; exp(-thickness) of the
            scene's light comes through.
        slope: float [2], share by which it grows towards the lower and the right border.
        stray: float [3], colour of the stray light, 0 to 255.
        noise: Standard deviation of the noise, in grey levels.
    """

    gain: np.ndarray
    gamma: float = 1.0
    blur: float = 0.0
    thickness: float = 0.0
    slope: tuple[float, float] = (0.0, 0.0)
    stray: np.ndarray | None = None
    noise: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        """A random look."""
        gain, gamma, noise = np.ones(3), 1.0, 0.0
        if rng.random() < 0.3:
            gamma = math.exp(rng.uniform(-0.5, 0.75))
        if rng.random() < 0.3:
            noise = rng.uniform(0, _NOISIEST if rng.random() < 0.6 else 8)
        if rng.random() < 0.3:
            gain *= math.exp(-rng.uniform(0, _DARKEST))
            if rng.random() < 0.5:
                gamma, noise = math.exp(rng.uniform(0, 0.75)), rng.uniform(0, 8)
        if rng.random() < 0.2:
            gain *= np.exp(-rng.uniform(0, 1, 3) * rng.uniform(0, _DEEPEST))
        thickness, stray, slope = 0.0, None, np.zeros(2)
        if rng.random() < 0.3:
            thickness = rng.uniform(0, _THICKEST)
            stray = rng.uniform(60, 240) * np.exp(rng.normal(0, 0.06, 3))
            if rng.random() < 0.6:
                slope = rng.normal(0, 0.2, 2)
        blur = rng.uniform(0, _BLURRIEST) if rng.random() < 0.15 else 0.0
        return cls(gain, gamma, blur, thickness, (slope[0], slope[1]), stray, noise)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An image uint8 [H, W, 3] in this look, likewise; `rng` is for the noise."""
        table = 255 * (np.arange(256)[:, None] / 255) ** self.gamma * self.gain
        x = cv2.LUT(image, table.astype(np.float32).reshape(1, 256, 3))
        height, width = image.shape[:2]
        if self.blur * width > 0.3:
            x = cv2.GaussianBlur(x, (0, 0), self.blur * width)
        if self.stray is not None:
            rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
            columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
            uneven = 1 + self.slope[0] * rows + self.slope[1] * columns
            through = np.exp(np.float32(-self.thickness) * np.maximum(uneven, 0))
            x = through * x + (1 - through) * np.float32(self.stray)
        if self.noise > 0:
            x = x + np.float32(self.noise) * rng.standard_normal(x.shape, np.float32)
        return np.clip(np.rint(x), 0, 255).astype(np.uint8)
