"""Teacher and student for adapters: averaged teachers, their targets, and the student's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_runtime.adaptation.losses import box_loss, score_loss
from edge_runtime.adaptation.network import Outputs, combine


def mean_of(outputs: list[Outputs]) -> Outputs:
    """The mean of several outputs."""
    return combine(lambda *maps: torch.stack(maps).mean(0), *outputs)


def objects_distance(found: Outputs, told: Outputs) -> Tensor:
    """How far a student's detections are from a teacher's: scores and boxes at confident points.

    Args:
        found: The student's, with logits.
        told: The teacher's, with probabilities.
    """
    if not (found.scores and found.boxes and told.scores and told.boxes):
        return found.features.new_zeros(())
    return score_loss(found.scores, told.scores) + box_loss(found.boxes, told.boxes, told.scores)


@torch.no_grad()
def follow(teacher: Tensor, student: Tensor, momentum: float) -> None:
    """Move a teacher's adapter towards its student's by one step of an exponential average."""
    teacher.lerp_(student.detach(), 1 - momentum)
