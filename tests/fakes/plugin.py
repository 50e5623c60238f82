"""`pytest -p fakes.plugin`: the whole run on a fake GPU, to test the tests that need a real one.

FAKE_FAULT names something that goes wrong on that GPU, which those tests must find out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.machine import Machine

_PATCH = pytest.MonkeyPatch()
_FOLDER = Path(tempfile.mkdtemp(prefix="fake-gpu-"))
_COUNT = 0


def _drift(values: np.ndarray) -> np.ndarray:
    """Results change after a while."""
    global _COUNT
    _COUNT += 1
    return values + 1 if _COUNT > 300 else values


FAULTS: dict[str, tuple[str, Any]] = {
    "statistics off by a tenth": ("statistics", lambda values: values * np.float32(1.1)),
    "scores off": ("scores", lambda values: values - np.float32(0.03)),
    "drift": ("scores", _drift),
}


def pytest_configure(config: pytest.Config) -> None:
    machine = Machine(_PATCH, _FOLDER).install()
    if fault := os.environ.get("FAKE_FAULT"):
        name, spoil = FAULTS[fault]
        machine.trt.spoil[name] = spoil


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
