"""Alignment of channel statistics, in closed loop and without a gradient.

Adaptive batch normalisation (Li et al., arXiv:1603.04779) replaces a network's normalisation
statistics by the target's. Here the network is left alone and its adapter takes each channel from
the target's mean and deviation part of the way to the source's. Since the engine reports the
statistics that enter each point while the adapter is active, every point corrects what the points
before it have left: fed back frame by frame, they are solved one after the other.
"""

from __future__ import annotations

import numpy as np

from edge_runtime.adaptation.divergence import VARIANCE_FLOOR
from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.strategies import register_strategy
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result


def aligning(
    reference: Reference,
    mean: np.ndarray,
    var: np.ndarray,
    strength: np.ndarray | float,
    most_scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale [C] and shift [C] that move target statistics towards the source's.

    Between Gaussians this is the optimal transport map, followed to the share `strength` of its
    way (McCann's displacement interpolation).

    Args:
        reference: The source.
        mean: float [C], of the target.
        var: float [C], of the target.
        strength: 0 leaves everything as it is, 1 aligns fully; a number or [C].
        most_scale: The full map's scale is kept within 1 / `most_scale` and `most_scale`.
    """
    ratio = np.empty_like(mean)
    for part in reference.slices.values():
        floor = VARIANCE_FLOOR * float(np.median(reference.var[part])) + 1e-12
        source, target = (np.maximum(v[part], floor) for v in (reference.var, var))
        ratio[part] = np.sqrt(source / target)
    ratio = np.clip(ratio, 1 / most_scale, most_scale)
    return 1 + strength * (ratio - 1), strength * (reference.mean - ratio * mean)


@register_strategy("align")
class Alignment:
    """Follows the target's running statistics while they are shifted.

    Args:
        bundle: Whose reference the target is aligned to.
        strength: Share of the way towards the source.
        momentum: Weight of a new frame in the running statistics, once there have been more than
            its inverse.
        most_scale: See `aligning`.
        prior: Frames' worth of trust in the source's statistics before the first frame of a shift.
        points: Number of adapter points to use, from the first; all if None.
    """

    name = "align"

    def __init__(
        self,
        bundle: Bundle,
        strength: float = 0.5,
        momentum: float = 0.05,
        most_scale: float = 3.0,
        prior: float = 0.5,
        points: int | None = None,
    ) -> None:
        if not 0 < strength <= 1 or not 0 < momentum <= 1 or most_scale < 1 or prior < 0:
            raise InputError(
                f"strength {strength} and momentum {momentum} must lie in (0, 1], most_scale "
                f"{most_scale} must be at least 1 and prior {prior} at least 0"
            )
        self.reference = Reference.of(bundle)
        self.momentum, self.most_scale, self.prior = momentum, most_scale, prior
        self.strength = np.zeros(len(self.reference.mean), np.float32)
        for part in list(self.reference.slices.values())[:points]:
            self.strength[part] = strength
        self.reset()

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Forget the target; from `adapter`, take the target that it was made for."""
        self._count = 0
        self._mean, self._square = self.reference.mean.copy(), self.reference.var.copy()
        self._square += np.square(self._mean)
        if adapter is not None:
            self._start_from(adapter)

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """The adapter for the target as it is known now; None while nothing is shifted."""
        if result.statistics is None or drift.state != "shifted":
            return None
        mean, var = self.reference.split(result.statistics)
        self._count += 1
        weight = max(self.momentum, 1 / (self._count + 1))
        self._mean += weight * (mean - self._mean)
        self._square += weight * (var + np.square(mean) - self._square)
        return self.adapter()

    def adapter(self) -> np.ndarray:
        """The adapter for the running statistics, float32 [A]."""
        trust = self._count / (self._count + self.prior) if self._count else 0.0
        var = np.maximum(self._square - np.square(self._mean), 0)
        strength = self.strength * trust
        scale, shift = aligning(self.reference, self._mean, var, strength, self.most_scale)
        return self.reference.join(scale, shift)

    def _start_from(self, adapter: np.ndarray) -> None:
        """Invert `aligning` for the channels that are aligned; the next frames refine it."""
        scale, shift = self.reference.split(adapter)
        used = self.strength > 0
        strength = np.where(used, self.strength, 1)
        ratio = np.clip(1 + (scale - 1) / strength, 1 / self.most_scale, self.most_scale)
        mean = np.where(used, (self.reference.mean - shift / strength) / ratio, self._mean)
        var = np.where(used, self.reference.var / np.square(ratio), self.reference.var)
        self._mean = mean.astype(np.float32)
        self._square = (var + np.square(mean)).astype(np.float32)
        self._count = round(1 / self.momentum)
