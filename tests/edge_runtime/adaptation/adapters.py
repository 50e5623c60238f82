"""Adapters for the tiny bundle that are told apart at a glance."""

from __future__ import annotations

import numpy as np


def adapter(value: float) -> np.ndarray:
    """Six times one value, float32 [6]."""
    return np.full(6, value, np.float32)
