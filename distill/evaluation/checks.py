"""What every judge of features asks of them, said in the same words."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_runtime.errors import InputError


def checked(
    features: Tensor, labels: Tensor | None, name: str, least: int = 1
) -> tuple[Tensor, Tensor]:
    """Features as float32 [N, D] and labels as int64 [N] (empty where there are none).

    Raises:
        InputError: another shape, fewer than ``least`` vectors, values that are not finite,
            labels of another number or below 0.
    """
    if features.ndim != 2 or len(features) < least:
        raise InputError(
            f"{name} features have shape {list(features.shape)}, expected [N, D] with N of at "
            f"least {least}; give more images"
        )
    features = features.detach().float()
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad:
        raise InputError(
            f"{bad} of {len(features)} {name} features are not finite; the encoder has diverged, "
            "take an earlier checkpoint"
        )
    if labels is None:
        return features, torch.empty(0, dtype=torch.int64)
    labels = labels.detach().to(features.device).long().flatten()
    if len(labels) != len(features):
        raise InputError(f"{len(features)} {name} features, but {len(labels)} labels")
    if int(labels.min()) < 0:
        raise InputError(
            f"{name} labels hold {int(labels.min())}; classes count from 0, leave out images "
            "without one"
        )
    return features, labels


def class_count(labels: Tensor) -> int:
    """Number of classes of int64 labels [N].

    Raises:
        InputError: fewer than two classes occur.
    """
    if len(labels.unique()) < 2:
        raise InputError("all images are of one class; there is nothing to tell apart")
    return int(labels.max()) + 1
