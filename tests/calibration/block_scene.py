"""A scene that a student learns in seconds: a bright block on a dark floor."""

from __future__ import annotations

import numpy as np

SIZE = (64, 96)  # of the network
_RAW = (80, 120)


def draw_block(seed: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A bright block on a dark floor: image uint8 [80, 120, 3], mask, box as x, y, w, h."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 90, (*_RAW, 3), dtype=np.uint8)
    mask = np.zeros(_RAW, np.uint8)
    x, y = int(random.integers(5, 70)), int(random.integers(5, 40))
    image[y : y + 30, x : x + 40] += random.integers(90, 150, 3).astype(np.uint8)
    mask[y : y + 30, x : x + 40] = 1
    return image, mask, [x, y, 40, 30]
