"""What a network learns from when its robot rests: views of frames and what to say about them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edge_runtime.adaptation.consolidation.settings import ConsolidationSettings
from edge_runtime.adaptation.consolidation.teacher import ClassThresholds, sharpened
from edge_runtime.adaptation.likeness import Likeness
from edge_runtime.adaptation.looks import FARTHEST, Explanation, explain
from edge_runtime.adaptation.network import combine, row
from edge_runtime.adaptation.rehearsal import STRIDE, Lesson, Rehearsal, predict
from edge_runtime.adaptation.style import PlaceStyle
from edge_runtime.adaptation.views import Disturbance, View, stack
from edge_runtime.bundle import Bundle
from edge_runtime.errors import RefusedError
from edge_runtime.student import Student

log = logging.getLogger(__name__)
_MEASURED = 64  # source frames, at most, on which looks are measured


@dataclass(frozen=True)
class Lessons:
    """What is learnt from, at the network's size.

    Attributes:
        place: uint8 [N, H, W, 3], frames without labels.
        adapter: float32 [A], the adapter that alignment found on them.
        style: How they look beside the source's.
        source: uint8 [M, H, W, 3], canary frames to rehearse.
        masks: uint8 [M, H, W] with 255 where there is no label, or None.
        class_weight: float32 [C] of the segmentation classes, or None without that task.
    """

    place: np.ndarray
    adapter: np.ndarray
    style: PlaceStyle
    source: np.ndarray
    masks: np.ndarray | None
    class_weight: np.ndarray | None


def looks_of(
    bundle: Bundle, student: Student, place: np.ndarray, source: np.ndarray
) -> Explanation:
    """What explains the looks of a place, measured on a part of the source's frames.

    Args:
        bundle: With statistics of the training domain.
        student: Its network.
        place: uint8 [N, H, W, 3].
        source: uint8 [M, H, W, 3].

    Raises:
        RefusedError: Light, sharpness and noise do not explain the place, so that whatever is
            learnt in such looks is not learnt about it.
    """
    step = -(-len(source) // _MEASURED)
    looks = explain(place, source[::step], Likeness(bundle, student).to(place))
    what = "light, sharpness and noise" if looks.lit else "sharpness and noise"
    log.info("the place's looks: %s, %.1f thresholds of drift off", what, looks.distance)
    if not looks.suffices:
        raise RefusedError(
            f"with the light, sharpness and noise of the place, frames of the training domain are "
            f"still {looks.distance:.1f} drift thresholds away from it, expected at most "
            f"{FARTHEST:g}: it differs in more than looks; keep the bundle, or label frames of the "
            "place and train with them"
        )
    return looks


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
        self.disturb = Disturbance()
        weights = lessons.class_weight
        self.rehearsal = Rehearsal(student, lessons.source, lessons.masks, weights, settings.crop)
        self.thresholds = ClassThresholds(1 if weights is None else len(weights), settings.kept)

    def of_place(self, teacher: Student, rng: np.random.Generator) -> list[Lesson]:
        """Views of the place, labelled by the teacher on the whole frames."""
        frames, count = self.lessons.place, self.settings.place_frames
        images = frames[rng.choice(len(frames), count, replace=len(frames) < count)]
        told = predict(teacher, stack(list(images)), self.adapter)
        weight = None
        if told.segmentation is not None:
            weight = self.thresholds(told.segmentation)
            told = replace(told, segmentation=sharpened(told.segmentation))
        drawn = []
        for i, image in enumerate(images):
            view = View.draw(rng, image.shape[:2], self.settings.crop)
            lesson = Lesson(
                view.of_image(image),
                view.of_outputs(row(told, i)),
                None if weight is None else view.of_map(weight[i : i + 1], STRIDE),
            )
            if rng.random() < self.settings.mixed:
                lesson = paste(lesson, self.rehearsal.draw(rng, self._styled), rng)
            drawn.append(replace(lesson, image=self.disturb(lesson.image, rng)))
        return drawn

    def of_home(self, rng: np.random.Generator) -> list[Lesson]:
        """Labelled source frames, whole and undisturbed: as the robot sees them at home."""
        return [self.rehearsal.draw(rng, crop=1.0) for _ in range(self.settings.clean_frames)]

    def of_looks(self, rng: np.random.Generator) -> list[Lesson]:
        """Views of labelled source frames in the looks of the place."""
        count = self.settings.rehearsed_frames
        drawn = [self.rehearsal.draw(rng, self._styled) for _ in range(count)]
        return [replace(lesson, image=self.disturb(lesson.image, rng)) for lesson in drawn]

    def _styled(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.lessons.style(image, rng, float(rng.uniform(0.5, 1)))


def paste(lesson: Lesson, other: Lesson, rng: np.random.Generator) -> Lesson:
    """Half the classes of another lesson, pasted over this one with all that is known of them.

    ClassMix (Olsson et al., WACV 2021), across domains as in DACS (Tranheden et al., WACV 2021).
    A point of the detection head takes the side that its centre shows.
    """
    known = other.outputs.segmentation
    if known is None or lesson.weight is None or other.weight is None:
        return lesson
    labels = known.argmax(1)
    present = labels.unique().numpy()
    if len(present) < 2:
        return lesson
    chosen = torch.from_numpy(rng.choice(present, (len(present) + 1) // 2, replace=False))
    over = torch.isin(labels, chosen)

    def choose(ours: Tensor, theirs: Tensor) -> Tensor:
        step = over.shape[-1] // ours.shape[-1]
        return torch.where(over[:, None, step // 2 :: step, step // 2 :: step], theirs, ours)

    pixels = over[0].numpy().repeat(STRIDE, 0).repeat(STRIDE, 1)[..., None]
    return Lesson(
        np.where(pixels, other.image, lesson.image),
        combine(choose, lesson.outputs, other.outputs),
        torch.where(over, other.weight, lesson.weight),
    )
