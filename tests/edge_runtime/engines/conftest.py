"""A machine with a fake GPU and TensorRT, in its generations and with memory of either kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.imitation import GENERATIONS
from fakes.machine import Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A Jetson with the oldest supported TensorRT; nothing may be left on its GPU at the end."""
    machine = Machine(monkeypatch, tmp_path / "cache").install()
    yield machine
    machine.check_clean()


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["zero-copy", "copies"])
def gpu(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A Jetson Orin, which shares its memory, or a GPU with memory of its own."""
    if request.param == "zero-copy":
        return {}
    return {"name": "RTX", "capability": (8, 9), "integrated": False}
