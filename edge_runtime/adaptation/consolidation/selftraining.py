"""Mean-teacher self-training on a place's frames, with rehearsal of labelled source frames."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

from edge_runtime.adaptation.consolidation.lessons import Curriculum, Lessons
from edge_runtime.adaptation.consolidation.settings import ConsolidationSettings
from edge_runtime.adaptation.rehearsal import lesson_losses
from edge_runtime.errors import RefusedError
from edge_runtime.student import Student

_WARMUP = 0.05  # share of the steps
_CLIP = 3.0  # largest norm of a gradient


class SelfTraining:
    """Tunes a student step by step. What a step does depends on its number and `state` alone.

    The teacher is the average of the student's weights over steps (Tarvainen & Valpola, NeurIPS
    2017) and what is kept in the end. Batch norm keeps the source's statistics: those of a few
    frames would unlearn the source.

    Args:
        student: The trained student, left as it is.
        lessons: What to learn from.
        settings: How.

    Attributes:
        step: Steps done.
    """

    def __init__(self, student: Student, lessons: Lessons, settings: ConsolidationSettings) -> None:
        self.settings, self.step = settings, 0
        self.student = copy.deepcopy(student).eval()
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        self.curriculum = Curriculum(student, lessons, settings)
        self._trained = [p.detach().clone() for p in student.parameters()]
        self._parameters = list(self.student.parameters())
        self.optimizer = torch.optim.AdamW(self._parameters, lr=settings.lr, weight_decay=0.0)
        for parameter in self._parameters:  # so that state has the same entries from the start
            self.optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def advance(self) -> dict[str, float]:
        """One step of the optimiser; returns the losses."""
        rng = np.random.default_rng([self.settings.seed, self.step])
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        settings, curriculum = self.settings, self.curriculum
        home, looks = curriculum.of_home(rng), curriculum.of_looks(rng)
        place = curriculum.of_place(self.teacher, rng) if settings.place else []
        # The place is learnt under its adapter: what tells it from home leaves home alone.
        losses, weights = {}, (settings.features, settings.detection)
        for name, weight, lessons, under in (
            ("place", settings.place, place, curriculum.adapter),
            ("home", settings.rehearsal, home, None),
            ("looks", settings.rehearsal, looks, curriculum.adapter),
        ):
            if not lessons:
                continue
            given = lesson_losses(self.student, lessons, under, *weights)
            for kind, value in given.items():
                losses[f"{name}.{kind}"] = weight * value
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        if not bool(norm.isfinite()):
            raise RefusedError(
                f"learning broke down at step {self.step}: the gradient is not finite; "
                "a lower learning rate may help"
            )
        self.optimizer.step()
        self._anchor_and_average(min(1.0, self.settings.anchor * rate))
        self.step += 1
        return {"loss": float(total.detach())} | {k: float(v.detach()) for k, v in losses.items()}

    def _rate(self) -> float:
        """Learning rate: linear warm-up, then a half cosine down to nothing."""
        done = min(1.0, self.step / self.settings.steps)
        warm = min(1.0, (self.step + 1) / max(1.0, _WARMUP * self.settings.steps))
        return self.settings.lr * warm * 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def _anchor_and_average(self, pull: float) -> None:
        momentum = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        means = self.teacher.parameters()
        for mean, now, start in zip(means, self._parameters, self._trained, strict=True):
            now.lerp_(start, pull)
            mean.lerp_(now, 1 - momentum)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, by name; tensors are those in use."""
        state = {"thresholds": self.curriculum.thresholds.values}
        for prefix, network in (("student", self.student), ("teacher", self.teacher)):
            state |= {f"{prefix}.{name}": p.detach() for name, p in network.named_parameters()}
        for index, parameter in enumerate(self._parameters):
            for name, value in self.optimizer.state[parameter].items():
                state[f"optimizer.{index}.{name}"] = value
        return state

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Go on from where `state` was taken.

        Raises:
            KeyError: An entry is missing.
            ValueError: An entry has another shape.
        """
        own = self.state()
        for name, value in own.items():
            if state[name].shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}")
        for name, value in own.items():
            value.copy_(state[name])
        self.step = step


@torch.no_grad()
def blended(old: Student, new: Student, share: float) -> Student:
    """A student whose weights lie the given share of the way from old to new."""
    result = copy.deepcopy(old)
    for value, target in zip(result.parameters(), new.parameters(), strict=True):
        value.lerp_(target, share)
    return result
