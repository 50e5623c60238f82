"""Entropy of both heads' predictions, as the methods that minimise it need it.

For the detection head only points count that may hold an object: elsewhere a background that is
sure of itself would drown them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edge_runtime.adaptation.network import Outputs

_CANDIDATE = 0.1  # score from which a point may hold an object


def samples(outputs: Outputs) -> Tensor:
    """Class probabilities of every pixel, float [N, C]; of candidate points without that head.

    Segmentation treats each pixel as a sample of its own, as the authors of TENT do (section 4.2).
    A point of the detection head becomes a distribution over its best class and background.
    """
    if outputs.segmentation is not None:
        return outputs.segmentation.softmax(1).movedim(1, -1).flatten(0, -2)
    scores = [s.sigmoid().amax(1).flatten() for s in outputs.scores or []]
    best = torch.cat(scores)
    best = best[best.detach() >= _CANDIDATE]
    return torch.stack([best, 1 - best], -1)


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats, [N], of probabilities [N, C]."""
    return -(probabilities * probabilities.clamp_min(1e-8).log()).sum(-1)


def margin(classes: int, share: float = 0.4) -> float:
    """The entropy below which EATA and SAR call a sample reliable: 0.4 ln C."""
    return share * math.log(classes)
