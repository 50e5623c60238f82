"""How fast two networks run here, one at a time."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from onnx import ModelProto

from calibration.network import open_session

_ROUNDS = 4
_RUNS = 12
_WARM_UP = 3


def latency_ratio(model: ModelProto, baseline: ModelProto, inputs: dict[str, np.ndarray]) -> float:
    """Median time of `model` over that of `baseline` on ONNX Runtime's CPU provider.

    The two take turns in sessions of their own, never side by side: thread pools that wait spin,
    and would slow each other.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for network, taken in zip((model, baseline), times, strict=True):
            session = open_session(network, literal=False)
            for _ in range(_WARM_UP):
                session.run(None, inputs)
            for _ in range(_RUNS):
                start = perf_counter()
                session.run(None, inputs)
                taken.append(perf_counter() - start)
            del session
    return float(np.median(times[0]) / np.median(times[1]))
