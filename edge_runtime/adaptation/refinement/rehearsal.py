"""``align+rehearsal``: alignment, then an adapter taught on labelled frames in the place's looks.

Alignment sees means and deviations of channels and no error. The bundle's canary has labels: its
frames are painted in the looks that were measured on the place's unlabelled ones, and the adapter
is taught to see in them what the network sees in the clean frames. A finished adapter is no small
step from the one in use, so it goes through a trial and the guard before it is used.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import torch

from edge_runtime.adaptation.consolidation.material import class_weight, divided_canary
from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.likeness import Likeness
from edge_runtime.adaptation.looks import Explanation, explain
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.refinement.apart import HereOrApart
from edge_runtime.adaptation.refinement.base import AdapterMethod
from edge_runtime.adaptation.rehearsal import Exam, Rehearsal, lesson_losses
from edge_runtime.adaptation.strategies import Refined, Strategy, create_strategy
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result

_CLEARLY = 0.04  # gain in the exam that speaks for an adapter by itself
_KEPT = 30  # newest frames of a place that its looks are measured on
_MOST_SCALE = 3.0  # of a channel, as in alignment


class TaughtAdapter(AdapterMethod):
    """Rounds of collecting frames, measuring their looks, and teaching an adapter.

    Args:
        bundle: With labelled canary frames.
        collected: New frames of the place before a round begins; twice as many for each further
            one.
        steps: Of the optimiser, a round.
        pace: Steps in one call of `learn`.
        batch: Canary frames a step.
        lr: Peak learning rate of Adam.
        crop: Share of each side that a view keeps.
        options: Of `AdapterMethod`.

    Raises:
        BundleError: The canary cannot be rehearsed.

    Attributes:
        gain: What the last round gained in its exam (see `Exam`), as far as that can be trusted.
    """

    name = "rehearsal"

    def __init__(
        self,
        bundle: Bundle,
        collected: int = 10,
        steps: int = 40,
        pace: int = 8,
        batch: int = 2,
        lr: float = 0.02,
        crop: float = 1.0,
        **options: Any,
    ) -> None:
        least = min(collected, steps, pace, batch)
        if least < 1 or not lr > 0 or not 0 < crop <= 1:
            raise InputError(
                f"collected {collected}, steps {steps}, pace {pace} and batch {batch} must be at "
                f"least 1, lr {lr} above 0 and crop {crop} between 0 and 1"
            )
        self.collected, self.steps, self.pace = collected, steps, pace
        self.batch, self.lr = batch, lr
        shown, kept = divided_canary(bundle)
        classes = len(bundle.manifest.classes.get("segmentation", []))
        masks, kept_masks = (part["masks"] if classes else None for part in (shown, kept))
        weights = None if masks is None else class_weight(bundle, masks, classes)
        self._images = np.concatenate([shown["images"], kept["images"]])
        self.reference = Reference.of(bundle)
        super().__init__(bundle, **options)
        self._likeness = Likeness(bundle, self.student)
        self.rehearsal = Rehearsal(self.student, shown["images"], masks, weights, crop)
        self.exam = Exam(self.student, kept["images"], kept_masks)

    def begin(self) -> None:
        self._place: deque[np.ndarray] = deque(maxlen=_KEPT)
        self._new, self._round, self.gain = 0, 0, 0.0
        self._looks: Explanation | None = None

    def learn(self, image: np.ndarray, base: np.ndarray | None = None) -> np.ndarray | None:
        """One piece of work: keep the frame, measure the looks, or take `pace` steps.

        Args:
            image: uint8 [H, W, 3] of the place, at the network's size.
            base: float32 [A], the adapter in use, which a round starts from.

        Returns:
            The adapter, float32 [A], at the end of a round, unless its exam speaks against it;
            else None.
        """
        if self._looks is None:
            self._place.append(image)
            self._new += 1
            if self._new >= self.collected * 2**self._round:
                self._prepare(self.source.numpy() if base is None else base)
            return None
        for _ in range(self.pace):
            if not self.step(image):
                return self._finish()
        return None

    def _finish(self) -> np.ndarray | None:
        """The taught adapter, if the frames that were kept out do not speak against it."""
        assert self._looks is not None
        looks, self._looks = self._looks, None
        taught = self.adapter.detach()
        gain = self.exam(taught, looks.paint) - self.exam(self._base, looks.paint)
        # In a light that is partly the scenes' own, labels tell what is bad, and not what is good.
        self.gain = min(gain, 0.0) if looks.lit else gain
        return taught.numpy().copy() if gain >= 0 else None

    def step(self, image: np.ndarray) -> bool:
        """One step on canary frames in the place's looks; False when the round is over."""
        if self._looks is None or self._done >= self.steps:
            return False
        rate = 0.5 * self.lr * (1.1 + math.cos(math.pi * self._done / self.steps))
        self._optimizer.param_groups[0]["lr"] = rate
        lessons = [self.rehearsal.draw(self._rng, self._looks.paint) for _ in range(self.batch)]
        loss = torch.stack(list(lesson_losses(self.student, lessons, self.adapter).values())).sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            scale, shift = self.reference.split(self.adapter.numpy())
            scale = np.clip(scale, 1 / _MOST_SCALE, _MOST_SCALE)
            self.adapter.copy_(torch.from_numpy(self.reference.join(scale, shift)))
        self._done += 1
        return True

    def _prepare(self, base: np.ndarray) -> None:
        """Measure the looks; begin a round, or wait for more frames if nothing explains them."""
        place = np.stack(self._place)
        self._new, self._round = 0, self._round + 1
        looks = explain(place, self._images, self._likeness.to(place))
        self._looks = looks if looks.suffices else None
        self._base = torch.from_numpy(np.array(base, np.float32))
        self.adapter = self._base.clone().requires_grad_(True)
        self._optimizer = torch.optim.Adam([self.adapter], lr=self.lr)
        self._rng, self._done = np.random.default_rng(self._round), 0


class AlignedRehearsal:
    """Alignment until an adapter is taught and accepted; that one is held from then on.

    Args:
        bundle: See `TaughtAdapter`.
        align: Options of alignment.
        apart: Learn in a process of its own, which cannot hold perception up.
        duty: With `apart`, the share of its time that the process may work.
        options: Of `TaughtAdapter`.
    """

    name = "align+rehearsal"

    def __init__(
        self,
        bundle: Bundle,
        align: dict[str, Any] | None = None,
        apart: bool = False,
        duty: float = 0.2,
        **options: Any,
    ) -> None:
        self.alignment: Strategy = create_strategy("align", bundle, **(align or {}))
        self.predict = getattr(self.alignment, "predict", None)
        self._held: np.ndarray | None = None
        self._begun = False
        self.learning = HereOrApart(bundle, TaughtAdapter, apart, duty, options)

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """The adapter that is held, if one is; else alignment's."""
        if self._held is not None:
            return self._held.copy() if drift.state == "shifted" else None
        return self.alignment.observe(frame, result, drift)

    def refine(self, frame: Frame, adapter: np.ndarray) -> Refined | None:
        """Learn from a frame perceived under `adapter`; a candidate to be tried, or None."""
        self._begun = True
        found = self.learning.learn(frame, adapter)
        if found is None:
            return None
        gain = self.learning.gain
        said = f"labelled frames in the looks of the place are known {100 * gain:.1f} points better"
        return Refined(found, said if gain >= _CLEARLY else None)

    def accepted(self, adapter: np.ndarray) -> None:
        """Hold a candidate that passed its trial."""
        self._held = np.array(adapter, np.float32)

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Forget the place; hold an adapter that is given, until a better one is taught."""
        self.alignment.reset(adapter)
        self._held = None if adapter is None else np.array(adapter, np.float32)
        if self._begun:
            self.learning.reset()
        self._begun = False

    def close(self) -> None:
        """End the process, if there is one."""
        self.learning.close()


create = AlignedRehearsal
