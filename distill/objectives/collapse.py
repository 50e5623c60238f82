"""How far the embeddings that a loss compares are from having collapsed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def embedding_spread(rows: Tensor) -> Tensor:
    """Standard deviation of l2-normalised embeddings [N, D] times the root of D, 0 to about 1.

    0: all images have one embedding, and whatever the loss says, nothing is learnt (SimSiam,
    Chen & He 2021, section 4.1). Reported as ``spread`` beside a loss, it stops a dead run.
    """
    unit = F.normalize(rows.float(), dim=1)
    return unit.std(0).mean() * unit.shape[1] ** 0.5
