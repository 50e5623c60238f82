"""``align+ssl``: alignment, refined by self-supervision where the robot has torch.

Alignment sets the adapter frame by frame. On top of it a residual is learnt by gradient: an
averaged teacher sees the clean frame, the student a disturbed, cropped, mirrored and partly masked
view, and has to agree in dense features (cosine, and relations between places) and, where the
teacher is sure, in the predictions of both heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.losses import (
    feature_distance,
    relational_distance,
    soft_segmentation_loss,
)
from edge_runtime.adaptation.network import Outputs, probable, row, run
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.refinement.apart import HereOrApart
from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.refinement.teaching import follow, objects_distance
from edge_runtime.adaptation.strategies import Strategy, create_strategy
from edge_runtime.adaptation.views import Disturbance, View, stack
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result

_VIEWS = 2


class Consistency(AdapterMethod):
    """Learns the residual adapter; `base` is what it comes on top of.

    Args:
        bundle: See `AdapterMethod`.
        lr: Learning rate of Adam.
        ema: Of the teacher's residual.
        pull: Share of the residual that fades in each step.
        crop: Share of each side that a view keeps.
        relations: Weight of relations between places.
        options: Of `AdapterMethod`.
    """

    name = "ssl"

    def __init__(
        self,
        bundle: Bundle,
        lr: float = 1e-3,
        ema: float = 0.98,
        pull: float = 0.002,
        crop: float = 0.75,
        relations: float = 0.2,
        **options: Any,
    ) -> None:
        if not 0 < crop <= 1 or not 0 <= ema < 1 or not 0 <= pull < 1:
            raise InputError(f"crop {crop}, ema {ema} and pull {pull} must lie between 0 and 1")
        self.lr, self.ema, self.pull, self.crop = lr, ema, pull, crop
        self.relations = relations
        self._places = index_pairs(bundle)
        super().__init__(bundle, **options)

    def begin(self) -> None:
        self.optimizer = torch.optim.Adam([self.adapter], lr=self.lr)
        self.teacher = self.adapter.detach().clone()
        self.base = self.source.clone()
        self._rng = np.random.default_rng(0)
        self._disturb = Disturbance()

    def step(self, image: np.ndarray) -> bool:
        with torch.no_grad():
            told = probable(self.forward(image, self.over(self.teacher)))
        size = image.shape[0], image.shape[1]
        drawn = [View.draw(self._rng, size, self.crop) for _ in range(_VIEWS)]
        seen = stack([self._disturb(view.of_image(image), self._rng) for view in drawn])
        found = run(self.student, seen, self.over(self.adapter))
        losses = [self._loss(row(found, i), view.of_outputs(told)) for i, view in enumerate(drawn)]
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.adapter.lerp_(self.source, self.pull)
        follow(self.teacher, self.adapter, self.ema)
        return True

    def learn(self, image: np.ndarray, base: np.ndarray | None = None) -> np.ndarray | None:
        """Learn from an image uint8 [H, W, 3] on top of an adapter `base`, float32 [A].

        Returns:
            The averaged residual, float32 [A].
        """
        if base is not None:
            self.base = torch.from_numpy(np.array(base, np.float32))
        return self.teacher.numpy().copy() if self.step(image) else None

    def _loss(self, found: Outputs, told: Outputs) -> Tensor:
        loss = feature_distance(found.features, told.features)
        loss = loss + self.relations * relational_distance(found.features, told.features)
        if found.segmentation is not None and told.segmentation is not None:
            loss = loss + soft_segmentation_loss(found.segmentation, told.segmentation)
        return loss + 0.3 * objects_distance(found, told)

    def over(self, residual: Tensor) -> Tensor:
        """The residual applied after `base`, float32 [A]."""
        return after(self.base, residual, self._places)


def after(base: Tensor, residual: Tensor, places: Sequence[Tensor]) -> Tensor:
    """One adapter for two in a row: y = r (s x + b) + c.

    Args:
        base: float32 [A], comes first.
        residual: float32 [A].
        places: Indices of the scales and of the shifts.
    """
    scale, shift = places
    whole = torch.empty_like(residual)
    whole[scale] = residual[scale] * base[scale]
    whole[shift] = residual[scale] * base[shift] + residual[shift]
    return whole


class AlignedConsistency:
    """Alignment on every frame, a learnt residual on top.

    Args:
        bundle: See `AdapterMethod`.
        align: Options of alignment.
        apart: Learn in a process of its own, which cannot hold perception up: every frame is
            aligned, and the residual follows when there is one. Without it each frame waits.
        duty: With `apart`, the share of its time that the process may work.
        every: Without `apart`, learn from every so many-th frame.
        options: Of `Consistency`.
    """

    name = "align+ssl"

    def __init__(
        self,
        bundle: Bundle,
        align: dict[str, Any] | None = None,
        apart: bool = False,
        duty: float = 0.2,
        every: int = 1,
        **options: Any,
    ) -> None:
        self.every, self._seen = every if not apart else 1, 0
        self.alignment: Strategy = create_strategy("align", bundle, **(align or {}))
        self.predict = getattr(self.alignment, "predict", None)
        self._identity = identity_adapter(bundle.manifest)
        self._places = index_pairs(bundle)
        self.learning = HereOrApart(bundle, Consistency, apart, duty, options)
        self._residual = self._identity

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """Align, learn from the frame while the world is shifted, and put one after the other."""
        base = self.alignment.observe(frame, result, drift)
        if base is None:
            return None
        self._seen += 1
        if (self._seen - 1) % self.every == 0:
            learnt = self.learning.learn(frame, base)
            self._residual = self._residual if learnt is None else learnt
        first, second = (torch.from_numpy(np.array(a)) for a in (base, self._residual))
        return after(first, second, self._places).numpy()

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Go on from an adapter, all of which counts as alignment."""
        self.alignment.reset(adapter)
        self._residual, self._seen = self._identity, 0
        self.learning.reset()

    def close(self) -> None:
        """End the process, if there is one."""
        self.learning.close()


def index_pairs(bundle: Bundle) -> list[Tensor]:
    """Where the scales and the shifts lie in an adapter."""
    places = Reference.of(bundle).split(np.arange(bundle.manifest.adapter_size))
    return [torch.from_numpy(p) for p in places]


create = AlignedConsistency
