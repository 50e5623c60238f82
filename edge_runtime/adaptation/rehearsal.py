"""Rehearsal: labelled source frames that a network is shown again, in whatever looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_runtime.adaptation.losses import (
    box_loss,
    feature_distance,
    score_loss,
    soft_segmentation_loss,
)
from edge_runtime.adaptation.network import Outputs, combine, probable, run
from edge_runtime.adaptation.views import View, stack, whole
from edge_runtime.evaluation import confusion, miou
from edge_runtime.student import Student

UNLABELLED = 255
STRIDE = 4  # of segmentation logits, pixels

Look = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # [H, W, 3], 0 to 255


@dataclass(frozen=True, slots=True)
class Lesson:
    """A view and what a student should say about it.

    Attributes:
        image: float32 [h, w, 3], 0 to 255.
        outputs: The target: a teacher's, heads as probabilities, with leading 1.
        weight: float32 [1, h/4, w/4], how much each place of the mask counts, or None.
    """

    image: np.ndarray
    outputs: Outputs
    weight: Tensor | None


class Rehearsal:
    """Draws lessons from canary frames.

    Args:
        student: The trained network, which knows them.
        source: uint8 [M, H, W, 3].
        masks: uint8 [M, H, W] with `UNLABELLED`, or None.
        class_weight: float32 [C] of the segmentation classes, or None without that task.
        crop: Share of each side that a view keeps.
    """

    def __init__(
        self,
        student: Student,
        source: np.ndarray,
        masks: np.ndarray | None,
        class_weight: np.ndarray | None,
        crop: float,
    ) -> None:
        self.source, self.crop = source, crop
        self.class_weight = None if class_weight is None else torch.from_numpy(class_weight)
        labels = [None] * len(source) if masks is None else list(masks)
        self._known = [recall(student, *pair) for pair in zip(source, labels, strict=True)]

    def draw(
        self, rng: np.random.Generator, look: Look | None = None, crop: float | None = None
    ) -> Lesson:
        """A view of a canary frame, in the given looks, with what is known of it.

        Args:
            rng: Which frame and which part of it.
            look: Paints the frame; it stays as it is if None.
            crop: Share of each side that this view keeps, if not that of all.
        """
        i = int(rng.integers(len(self.source)))
        image = self.source[i]
        view = View.draw(rng, image.shape[:2], crop or self.crop)
        seen = image if look is None else look(image, rng)
        outputs = view.of_outputs(self._known[i])
        weight = None
        if outputs.segmentation is not None and self.class_weight is not None:
            weight = self.class_weight[outputs.segmentation.argmax(1)]
        return Lesson(view.of_image(seen), outputs, weight)


@torch.no_grad()
def predict(student: Student, images: Tensor, adapter: Tensor | None = None) -> Outputs:
    """Outputs averaged over a frame and its mirror image; heads as probabilities.

    Args:
        student: The teacher.
        images: float32 [B, H, W, 3].
        adapter: float32 [A], or None.

    Returns:
        `segmentation` and `scores` hold probabilities in place of logits.
    """
    size = (images.shape[1], images.shape[2])
    plain = probable(run(student, images, adapter))
    mirrored = probable(run(student, images.flip(2), adapter))
    return combine(lambda a, b: (a + b) / 2, plain, whole(size, True).of_outputs(mirrored))


@torch.no_grad()
def recall(student: Student, image: np.ndarray, labels: np.ndarray | None) -> Outputs:
    """What the trained network says of a source frame, halfway to its labels where it has some.

    Labels alone would drive the network to certainty on the few frames there are.

    Args:
        student: The trained network.
        image: uint8 [H, W, 3].
        labels: uint8 [H, W] with `UNLABELLED`, or None.

    Returns:
        Heads as probabilities, with leading 1.
    """
    known = predict(student, stack([image]))
    if known.segmentation is None or labels is None:
        return known
    mask = torch.from_numpy(labels).long()
    labelled = (mask != UNLABELLED).float()
    classes = known.segmentation.shape[1]
    one_hot = F.one_hot(mask.clamp_max(classes - 1), classes).movedim(-1, 0) * labelled
    told, share = (F.avg_pool2d(m[None].float(), STRIDE) for m in (one_hot, labelled[None]))
    told = told / share.clamp_min(1e-6)
    half = 0.5 * (share > 0.5).float()
    return replace(known, segmentation=torch.lerp(known.segmentation, told, half))


def lesson_losses(
    student: Student,
    lessons: list[Lesson],
    adapter: Tensor | None,
    features: float = 0.5,
    detection: float = 0.3,
) -> dict[str, Tensor]:
    """Losses of a batch of lessons, by name, weighted.

    Args:
        student: Who is taught.
        lessons: At least one.
        adapter: float32 [A], under which it is taught, or None.
        features: Weight of dense feature consistency.
        detection: Weight of score and box consistency.
    """
    found = run(student, stack([lesson.image for lesson in lessons]), adapter)
    told = combine(lambda *maps: torch.cat(maps), *(lesson.outputs for lesson in lessons))
    weights = [lesson.weight for lesson in lessons if lesson.weight is not None]
    weight = torch.cat(weights) if weights else None
    return rehearsal_losses(found, told, weight, features, detection)


def rehearsal_losses(
    found: Outputs,
    told: Outputs,
    weight: Tensor | None,
    features: float = 0.5,
    detection: float = 0.3,
) -> dict[str, Tensor]:
    """Losses of what a student says beside what it should say, by name, weighted.

    Args:
        found: The student's outputs.
        told: The target: a teacher's, heads as probabilities.
        weight: float32 [B, h/4, w/4], how much each place of the mask counts; None leaves the mask
            out.
        features: Weight of dense feature consistency.
        detection: Weight of score and box consistency.
    """
    losses = {"features": features * feature_distance(found.features, told.features)}
    if found.segmentation is not None and told.segmentation is not None and weight is not None:
        losses["segmentation"] = soft_segmentation_loss(
            found.segmentation, told.segmentation, weight
        )
    if found.scores and told.scores and found.boxes and told.boxes:
        objects = score_loss(found.scores, told.scores)
        objects = objects + box_loss(found.boxes, told.boxes, told.scores)
        losses["detection"] = detection * objects
    return losses


class Exam:
    """Canary frames that nothing was learnt from, to judge adapters by.

    Args:
        student: Who is examined.
        source: uint8 [M, H, W, 3].
        masks: uint8 [M, H, W] with `UNLABELLED`, or None without that task.
    """

    def __init__(self, student: Student, source: np.ndarray, masks: np.ndarray | None) -> None:
        self.student, self.source, self.masks = student, source, masks
        self._known = [predict(student, stack([image])) for image in source]

    @torch.no_grad()
    def __call__(self, adapter: Tensor, look: Look) -> float:
        """How well the frames are known in some looks; the noise is the same each time.

        Returns:
            Mean intersection over union with the labels; without masks, the cosine between dense
            features and those of the clean frames.
        """
        rng = np.random.default_rng(0)
        matrix, alike = np.zeros((0, 0), np.int64), []
        for index, image in enumerate(self.source):
            found = run(self.student, stack([look(image, rng)]), adapter)
            alike.append(1 - float(feature_distance(found.features, self._known[index].features)))
            if self.masks is None or found.segmentation is None:
                continue
            classes = found.segmentation.shape[1]
            logits = F.interpolate(found.segmentation, scale_factor=STRIDE, mode="bilinear")
            mask = logits.argmax(1)[0].numpy().astype(np.uint8)
            now = confusion(mask, self.masks[index], classes)
            matrix = now if not matrix.size else matrix + now
        return miou(matrix) if matrix.any() else float(np.mean(alike))
