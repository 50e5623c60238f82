"""Rows of all processes, for losses of the global batch."""

from __future__ import annotations

import torch
from lightly.utils.dist import gather, rank, world_size
from torch import Tensor


def gathered(rows: Tensor) -> Tensor:
    """Rows [N, ...] of every process in order of rank [world N, ...]; gradients flow back.

    A loss of gathered rows has the same value on every process; averaged over processes, as data
    parallel training does, its gradient is that of one process with the global batch.
    """
    return torch.cat(gather(rows.contiguous())) if world_size() > 1 else rows


def own_rows(count: int, device: torch.device) -> Tensor:
    """Where the ``count`` rows of this process are among the gathered ones, [count]."""
    return torch.arange(count, device=device) + rank() * count
