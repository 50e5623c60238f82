"""``align``: the adapter that a bundle's predictor gives; without one, alignment in closed form.

The predictor knows from frames painted at the workstation which adapter answers which looks. It
reads the image alone, so there is no loop to solve: three frames of a new place are enough for an
adapter that can be used. From then on what the closed form makes of the network's statistics has a
part in it: the predictor knows best what noise and darkness ask for, the closed form mends what the
predictor has not seen in training, such as fog that is thicker in one half of the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_runtime.adaptation.alignment import Alignment
from edge_runtime.adaptation.descriptor import describe
from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.predictor import Predictor
from edge_runtime.adaptation.strategies import Strategy, register_strategy
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.geometry import Geometry


class PredictedAlignment:
    """Follows the looks of the place with the adapter that the predictor gives for them.

    Args:
        bundle: The network's.
        predictor: Its own.
        aligned: Weight of the closed form, 0 to 1.
        momentum: Weight of a new frame in the looks, once there have been more than its inverse.
        settled: Frames after which only every `every`-th is looked at.
        every: See `settled`.
    """

    name = "align"

    def __init__(
        self,
        bundle: Bundle,
        predictor: Predictor,
        aligned: float = 0.3,
        momentum: float = 0.05,
        settled: int = 10,
        every: int = 4,
    ) -> None:
        if not 0 < momentum <= 1 or not 0 <= aligned <= 1 or settled < 0 or every < 1:
            raise InputError(
                f"momentum {momentum} must lie in (0, 1], aligned {aligned} in [0, 1], settled "
                f"{settled} must be at least 0 and every {every} at least 1"
            )
        self.alignment, self.aligned = Alignment(bundle, momentum), aligned
        self.predictor = predictor
        self.momentum, self.settled, self.every = momentum, settled, every
        spec = bundle.manifest.input
        self._image = np.zeros((spec.height, spec.width, 3), np.uint8)
        self._geometry: Geometry | None = None
        self.reset()

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Forget the place; an `adapter` that is given is trusted until the place is known."""
        self.alignment.reset()
        self._seen = self._count = 0
        self._looks: np.ndarray | None = None
        self._given = None if adapter is None else np.array(adapter, np.float32)

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """The adapter for the looks as they are known now; None where nothing new is known."""
        if drift.state != "shifted":
            return None
        self._seen += 1
        if self._seen > self.settled and self._seen % self.every:
            return None
        found = self.predict(frame)
        aligned = self.alignment.observe(frame, result, drift)
        if aligned is not None:
            found = found + np.float32(self.aligned) * (aligned - found)
        if self._given is None:
            return found
        share = self._count / (self._count + 1 / self.momentum)
        return self._given + np.float32(share) * (found - self._given)

    @property
    def known(self) -> bool:
        """Whether the place is known by now, so that not every frame of it need be looked at."""
        return self._seen >= self.settled

    def predict(self, frame: Frame) -> np.ndarray:
        """The adapter for the looks of the frames shown so far and this one, float32 [A]."""
        looks = describe(self._fitted(frame.image))
        self._count += 1
        if self._looks is None:
            self._looks = looks
        self._looks = self._looks + max(self.momentum, 1 / self._count) * (looks - self._looks)
        return self.predictor(self._looks)

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        """The image at the network's size as in teaching: stretched, since bars are no looks."""
        size = image.shape[0], image.shape[1]
        if self._geometry is None or self._geometry.raw_size != size:
            self._geometry = Geometry(size, (self._image.shape[0], self._image.shape[1]))
        return self._geometry.to_network(image, out=self._image)


@register_strategy("align")
def create(bundle: Bundle, predicted: bool | None = None, **options: Any) -> Strategy:
    """Alignment, by the bundle's predictor if it has one.

    Args:
        bundle: The network's.
        predicted: Whether by the predictor (an error if there is none) or in closed form.
        options: Those of `PredictedAlignment` or `Alignment`.
    """
    predictor = None if predicted is False else Predictor.of(bundle)
    if predictor is not None:
        return PredictedAlignment(bundle, predictor, **options)
    if predicted:
        raise InputError(
            f"{bundle.path}: the bundle has no predictor; teach it one with fieldsight-distill "
            "predictor"
        )
    return Alignment(bundle, **options)
