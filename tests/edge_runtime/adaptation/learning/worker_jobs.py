"""Jobs for the worker process that need no torch, so that their tests start in no time."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np


class Count:
    """Adds one to what it started from, and tells the image's mean and the base's first value."""

    def __init__(self, bundle: Any, threads: int, **options: Any) -> None:
        self.options = options

    def reset(self, adapter: np.ndarray) -> None:
        self.adapter = adapter.copy()

    def learn(self, image: np.ndarray, base: np.ndarray) -> np.ndarray | None:
        if image[0, 0, 0] == 255:
            return None
        if image[0, 0, 0] == 254:
            self.adapter[:] = np.nan
        elif image[0, 0, 0] == 253:
            os._exit(7)
        elif image[0, 0, 0] == 252:
            time.sleep(3600)
        self.adapter += 1
        self.adapter[1], self.adapter[2] = image.mean(), base[0]
        return self.adapter
