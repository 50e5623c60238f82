"""PHI standardisation of teacher features: a rotation and a scale, unit variance per channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def equalising_rotation(eigenvalues: np.ndarray) -> np.ndarray:
    """Orthogonal R such that every diagonal entry of ``R diag(e) R^T`` is the mean of e.

    PHI-S (Ranzinger et al. 2024, section 3) uses a Hadamard matrix, which exists only for some
    sizes. A chain of n - 1 Givens rotations (Bendel & Mickey 1978) does the same for any n.

    Args:
        eigenvalues: [n], not negative.

    Returns:
        float64 [n, n].
    """
    size = len(eigenvalues)
    matrix, rotation = np.diag(eigenvalues.astype(np.float64)), np.eye(size)
    target = float(np.mean(eigenvalues))
    open_rows = list(range(size))
    while len(open_rows) > 1:
        diagonal = matrix[open_rows, open_rows]
        low, high = open_rows[int(diagonal.argmin())], open_rows[int(diagonal.argmax())]
        if low == high or np.isclose(diagonal.min(), diagonal.max()):
            break
        a, b, c = matrix[low, low], matrix[high, high], matrix[low, high]
        # tan t solves (b - target) t^2 - 2 c t + (a - target) = 0, so that entry `low` = target
        root = np.sqrt(max(c * c - (a - target) * (b - target), 0.0))
        tangent = (c + root) / (b - target) if b != target else 0.0
        cosine = 1 / np.sqrt(1 + tangent * tangent)
        sine = cosine * tangent
        givens = np.array([[cosine, -sine], [sine, cosine]])
        pair = [low, high]
        matrix[pair] = givens @ matrix[pair]
        matrix[:, pair] = matrix[:, pair] @ givens.T
        rotation[pair] = givens @ rotation[pair]
        open_rows.remove(low)
    return rotation


@dataclass
class Standardiser:
    """``y = W (x - mean)``: zero mean, equal unit variance per channel, invertible."""

    mean: Tensor  # [C]
    weight: Tensor  # [C, C]

    @classmethod
    def fit(cls, features: Tensor) -> Standardiser:
        """Estimates the transform from tokens [N, C]."""
        x = features.double()
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / max(len(x) - 1, 1)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        rotation = torch.from_numpy(equalising_rotation(values.numpy()))
        scale = values.mean().sqrt().clamp_min(1e-6)
        return cls(mean.float(), ((rotation @ vectors.T) / scale).float())

    def __call__(self, dense: Tensor) -> Tensor:
        """Standardises maps [B, C, h, w]."""
        centred = dense - self.mean.view(1, -1, 1, 1).to(dense)
        return torch.einsum("oc,bchw->bohw", self.weight.to(dense), centred)
