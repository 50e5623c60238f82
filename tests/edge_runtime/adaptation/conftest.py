"""A bundle with an adapter and a reference, and writers that are killed while they write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import World, make_world
from safetensors.numpy import save

from edge_runtime.adaptation.reference import FRAMES_KEY
from edge_runtime.adaptation.store import AdapterStore
from edge_runtime.bundle import Bundle, create_bundle, open_bundle

WRITERS = Path(__file__).with_name("killed_writers.py")


@pytest.fixture
def adaptive_bundle(
    tmp_path: Path, network: bytes, canary: bytes, fields: dict[str, Any]
) -> Bundle:
    """The tiny bundle with a reference: noise images, as in its canary."""
    rng = np.random.default_rng(0)
    home = np.repeat([0.5, 1 / 12], 3)
    reference = save(
        {
            FRAMES_KEY: (home * rng.normal(1, 0.02, (32, 6))).astype(np.float32),
            "stem.mean": np.full(3, 0.5, np.float32),
            "stem.var": np.full(3, 1 / 12, np.float32),
            "segmentation.histogram": np.array([10, 10, 10], np.float32),
        }
    )
    files: dict[str, bytes | Path] = {
        "model.onnx": network,
        "canary.npz": canary,
        "reference.safetensors": reference,
    }
    create_bundle(tmp_path / "adaptive.bundle", fields, files)
    return open_bundle(tmp_path / "adaptive.bundle")


@pytest.fixture
def store(tmp_path: Path, adaptive_bundle: Bundle) -> AdapterStore:
    """An empty store that keeps three adapters."""
    return AdapterStore(tmp_path / "state", adaptive_bundle, keep=3)


class Writers:
    """A process that has imported everything and forks one writer after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WRITERS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.line()  # ready

    def line(self) -> str:
        """The next line that the process or one of its writers prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, *what: object) -> int:
        """Fork a writer, as `killed_writers` describes; returns its process id."""
        assert self._process.stdin is not None
        print(*what, file=self._process.stdin, flush=True)
        return int(self.line())

    def reap(self) -> list[str]:
        """Wait until the writer is gone; what it had printed that was not read yet."""
        assert self._process.stdin is not None
        print("reap", file=self._process.stdin, flush=True)
        lines = []
        while (line := self.line()) != "reaped":
            lines.append(line)
        return lines

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="session")
def writers() -> Iterator[Writers]:
    """One such process for all tests."""
    found = Writers()
    yield found
    found.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A network that tells colours apart, with a labelled dataset; not to be written to."""
    return make_world(tmp_path_factory.mktemp("world"))
