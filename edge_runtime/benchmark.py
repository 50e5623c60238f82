"""How fast a bundle runs here: the network alone and the whole of perception."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception
from edge_runtime.telemetry import LatencyWindow

WARM_UP = 5


def benchmark(
    perception: Perception,
    frames: int = 100,
    raw_size: tuple[int, int] = (480, 640),
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time perception on a seeded noise image.

    Args:
        perception: What to time.
        frames: Timed frames, after a few untimed ones.
        raw_size: (height, width) of the raw image in pixels.
        tick: Called after each timed frame, for a progress bar.

    Returns:
        "engine_ms" and "total_ms" with "p50", "p90" and "p99", "fps", "engine", "frames",
        "raw_size" and "network_size".
    """
    if frames < 1:
        raise InputError(f"frames is {frames}, expected at least 1")
    image = np.random.default_rng(0).integers(0, 256, (*raw_size, 3), np.uint8)
    frame = Frame(image, 0, "benchmark")
    for _ in range(WARM_UP):
        perception(frame)
    engine, total = LatencyWindow(frames), LatencyWindow(frames)
    start = perf_counter()
    for _ in range(frames):
        timings = perception(frame).timings_ms
        engine.add(timings["engine"])
        total.add(timings["total"])
        tick()
    elapsed = perf_counter() - start
    spec = perception.manifest.input
    return {
        "engine": perception.engine.name,
        "frames": frames,
        "engine_ms": engine.summary(),
        "total_ms": total.summary(),
        "fps": frames / elapsed,
        "raw_size": list(raw_size),
        "network_size": [spec.height, spec.width],
    }
