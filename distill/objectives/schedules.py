"""Values that change over a training, by progress from 0 to 1."""

from __future__ import annotations

import math


def cosine(progress: float, start: float, end: float) -> float:
    """From ``start`` to ``end`` along half a cosine."""
    return end - (end - start) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def linear_warmup(progress: float, share: float, start: float, end: float) -> float:
    """From ``start`` straight to ``end`` in the first ``share`` of the training, then ``end``."""
    return end if progress >= share else start + (end - start) * max(progress, 0.0) / share
