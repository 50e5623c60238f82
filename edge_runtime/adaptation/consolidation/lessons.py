"""What a network learns from when its robot rests: views of frames and what to say about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge_runtime.adaptation.consolidation.settings import ConsolidationSettings
from edge_runtime.adaptation.consolidation.style import PlaceStyle
from edge_runtime.adaptation.consolidation.teacher import ClassThresholds, enlarge, predict
from edge_runtime.adaptation.network import Outputs, combine, row
from edge_runtime.adaptation.views import Disturbance, View, stack
from edge_runtime.student import Student

UNLABELLED = 255


@dataclass(frozen=True)
class Lessons:
    """What is learnt from, at the network's size.

    Attributes:
        place: uint8 [N, H, W, 3], frames without labels.
        adapter: float32 [A], the adapter that alignment found on them.
        source: uint8 [M, H, W, 3], canary frames to rehearse.
        masks: uint8 [M, H, W] with `UNLABELLED`, their labels, or None.
        class_weight: float32 [C] of the segmentation classes, or None without that task.
    """

    place: np.ndarray
    adapter: np.ndarray
    source: np.ndarray
    masks: np.ndarray | None
    class_weight: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Lesson:
    """A view and what a student should say about it.

    Attributes:
        image: float32 [h, w, 3], 0 to 255.
        outputs: A teacher's, heads as probabilities, with leading 1.
        labels: int64 [1, h/2, w/2], segmentation classes, or None.
        weight: float32 [1, h/2, w/2], how much each label counts, or None.
    """

    image: np.ndarray
    outputs: Outputs
    labels: Tensor | None
    weight: Tensor | None


class Curriculum:
    """Draws lessons.

    Args:
        student: The trained network, which knows the source frames.
        lessons: What to draw from.
        settings: How.
    """

    def __init__(self, student: Student, lessons: Lessons, settings: ConsolidationSettings) -> None:
        self.lessons, self.settings = lessons, settings
        self.adapter = torch.from_numpy(lessons.adapter)
        self.style = PlaceStyle.fit(lessons.place, lessons.source)
        self.disturb = Disturbance()
        weights = lessons.class_weight
        self.class_weight = None if weights is None else torch.from_numpy(weights)
        self.thresholds = ClassThresholds(1 if weights is None else len(weights), settings.kept)
        self._known = [predict(student, stack([image])) for image in lessons.source]

    def of_place(self, teacher: Student, rng: np.random.Generator) -> list[Lesson]:
        """Views of the place, labelled by the teacher on the whole frames."""
        frames, count = self.lessons.place, self.settings.place_frames
        images = frames[rng.choice(len(frames), count, replace=len(frames) < count)]
        told = predict(teacher, stack(list(images)), self.adapter)
        labels = weight = None
        if told.segmentation is not None:
            labels, weight = self.thresholds(enlarge(told.segmentation))
        drawn = []
        for i, image in enumerate(images):
            view = View.draw(rng, image.shape[:2], self.settings.crop)
            part = slice(i, i + 1)
            lesson = Lesson(
                view.of_image(image),
                view.of_outputs(row(told, i)),
                None if labels is None else view.of_map(labels[part], 2),
                None if weight is None else view.of_map(weight[part], 2),
            )
            if rng.random() < self.settings.mixed:
                lesson = paste(lesson, self._rehearsed(rng, styled=True), rng)
            drawn.append(self._disturbed(lesson, rng))
        return drawn

    def of_source(self, rng: np.random.Generator) -> list[Lesson]:
        """Views of canary frames, every second one in the looks of the place."""
        count = self.settings.rehearsed_frames
        return [self._disturbed(self._rehearsed(rng, k % 2 == 1), rng) for k in range(count)]

    def _rehearsed(self, rng: np.random.Generator, styled: bool) -> Lesson:
        """A view of a canary frame, its labels, and what the trained network said of it."""
        i = int(rng.integers(len(self.lessons.source)))
        image = self.lessons.source[i]
        view = View.draw(rng, image.shape[:2], self.settings.crop)
        seen = self.style(image, rng, float(rng.uniform(0.5, 1))) if styled else image
        labels = weight = None
        if self.lessons.masks is not None and self.class_weight is not None:
            mask = view.of_map(self.lessons.masks[i : i + 1], 1)[:, ::2, ::2]
            known = torch.from_numpy(np.ascontiguousarray(mask)).long()
            labels = known.clamp_max(len(self.class_weight) - 1)
            weight = (known != UNLABELLED).float()
        return Lesson(view.of_image(seen), view.of_outputs(self._known[i]), labels, weight)

    def _disturbed(self, lesson: Lesson, rng: np.random.Generator) -> Lesson:
        image = self.disturb(lesson.image, rng)
        return Lesson(image, lesson.outputs, lesson.labels, lesson.weight)


def paste(lesson: Lesson, other: Lesson, rng: np.random.Generator) -> Lesson:
    """Half the classes of another lesson, pasted over this one with all that is known of them.

    ClassMix (Olsson et al., WACV 2021), across domains as in DACS (Tranheden et al., WACV 2021).
    A point of the detection head takes the side that its centre shows.
    """
    if lesson.labels is None or lesson.weight is None:
        return lesson
    if other.labels is None or other.weight is None:
        return lesson
    present = other.labels[other.weight > 0].unique().numpy()
    if len(present) < 2:
        return lesson
    chosen = torch.from_numpy(rng.choice(present, (len(present) + 1) // 2, replace=False))
    over = torch.isin(other.labels, chosen) & (other.weight > 0)

    def choose(ours: Tensor, theirs: Tensor) -> Tensor:
        step = over.shape[-1] // ours.shape[-1]
        return torch.where(over[:, None, step // 2 :: step, step // 2 :: step], theirs, ours)

    pixels = over[0].numpy().repeat(2, 0).repeat(2, 1)[..., None]
    return Lesson(
        np.where(pixels, other.image, lesson.image),
        combine(choose, lesson.outputs, other.outputs),
        torch.where(over, other.labels, lesson.labels),
        torch.where(over, other.weight, lesson.weight),
    )
