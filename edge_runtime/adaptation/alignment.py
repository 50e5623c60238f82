"""Alignment of channel statistics, in closed loop and without a gradient.

Adaptive batch normalisation (Li et al., arXiv:1603.04779) replaces a network's normalisation
statistics by the target's. Here the network is left alone and its adapter takes each channel from
the target's mean and deviation part of the way to the source's. Since the engine reports the
statistics that enter each point while the adapter is active, every point corrects what the points
before it have left: fed back frame by frame, they are solved one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.reference import Reference
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result


@dataclass(frozen=True)
class Strength:
    """How far statistics are taken towards the source's, 0 (not at all) to 1 (all the way).

    Attributes:
        mean: Of a channel's way from the target's mean to the source's.
        amplify: Exponent of the ratio of deviations where the target's is smaller. What fog or
            darkness took comes back amplified, and so does noise; what blur took does not.
        attenuate: The same where the target's is larger, as in noise: there the best linear
            estimate attenuates (Wiener), and nothing is lost by it.
        first: Factor of `mean` and `amplify` at the first point.
        last: The same at the last point; in between it grows evenly. Late points see what the
            early ones have left, and can be taken at their word.
    """

    mean: float = 0.4
    amplify: float = 0.4
    attenuate: float = 0.8
    first: float = 0.7
    last: float = 1.8

    def __post_init__(self) -> None:
        for name in ("mean", "amplify", "attenuate"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"strength '{name}' is {getattr(self, name)}, expected 0 to 1")
        if not (self.first >= 0 and self.last >= 0):
            raise InputError(f"factors {self.first} and {self.last} must be at least 0")

    def over(self, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
        """`mean` and `amplify` of every channel, float [C] each."""
        factors = np.linspace(self.first, self.last, len(reference.points))
        each = np.repeat(factors, [point.channels for point in reference.points])
        return np.minimum(self.mean * each, 1), np.minimum(self.amplify * each, 1)


def aligning(
    reference: Reference,
    mean: np.ndarray,
    var: np.ndarray,
    strength: Strength,
    most_scale: float,
    trust: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale [C] and shift [C] that move target statistics towards the source's.

    Args:
        reference: The source.
        mean: float [C], of the target.
        var: float [C], of the target.
        strength: How far.
        most_scale: The full ratio of deviations is kept within 1 / `most_scale` and `most_scale`.
        trust: Of the target's statistics, 0 to 1; all strengths are multiplied by it.
    """
    ratio = np.sqrt(np.maximum(reference.var, reference.floor) / np.maximum(var, reference.floor))
    ratio = np.clip(ratio, 1 / most_scale, most_scale)
    moved, amplified = strength.over(reference)
    scale = ratio ** (trust * np.where(ratio > 1, amplified, strength.attenuate))
    aim = mean + trust * moved * (reference.mean - mean)
    return scale, aim - scale * mean


class Alignment:
    """Follows the target's running statistics while they are shifted.

    Args:
        bundle: Whose reference the target is aligned to.
        momentum: Weight of a new frame in the running statistics, once there have been more than
            its inverse.
        most_scale: See `aligning`.
        prior: Frames' worth of trust in the source's statistics before the first frame of a shift.
        strength: Fields of `Strength`.
    """

    name = "align"

    def __init__(
        self,
        bundle: Bundle,
        momentum: float = 0.05,
        most_scale: float = 3.0,
        prior: float = 0.5,
        **strength: float,
    ) -> None:
        if not 0 < momentum <= 1 or not most_scale >= 1 or not prior >= 0:
            raise InputError(
                f"momentum {momentum} must lie in (0, 1], most_scale {most_scale} must be at "
                f"least 1 and prior {prior} at least 0"
            )
        self.reference = Reference.of(bundle)
        self.momentum, self.most_scale, self.prior = momentum, most_scale, prior
        self.strength = Strength(**strength)
        self.reset()

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Forget the target; an `adapter` that is given is trusted until the target is known."""
        self._count = 0
        self._mean, self._square = self.reference.mean.copy(), self.reference.var.copy()
        self._square += np.square(self._mean)
        self._given = None if adapter is None else np.array(adapter, np.float32)

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
        args = self._mean, var, self.strength, self.most_scale
        found = self.reference.join(*aligning(self.reference, *args, trust))
        if self._given is None:
            return found
        share = self._count / (self._count + 1 / self.momentum)
        return self._given + np.float32(share) * (found - self._given)
