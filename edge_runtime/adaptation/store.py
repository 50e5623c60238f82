"""Adapters on disk: the last few versions, each whole or not there, and only those of this network.

A folder of a store holds one folder a network, named by the beginning of its SHA-256, so that an
adapter never meets a network that it was not learnt on, and a bundle put back finds its own again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, FiniteFloat

from edge_runtime.adaptation.sealed import SealedFolder, StoreError, Unusable, plain
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.manifest import Spec

__all__ = ["AdapterStore", "StoreError", "Stored"]
_KEEP = 8


class _Record(Spec):
    """What a file says."""

    model_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: str
    adapter: list[FiniteFloat]
    note: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored adapter.

    Attributes:
        version: Counts up from 1; the highest is the newest, whatever the clock said.
        adapter: float32 [A].
        note: What the learner wrote down with it.
        created: By the clock of that moment, for people.
        path: The file.
    """

    version: int
    adapter: np.ndarray
    note: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    path: Path = Path()


class AdapterStore:
    """Adapters of one bundle's network in a folder.

    Args:
        folder: Made when first saved to.
        bundle: Whose network the adapters are for.
        keep: How many versions are kept.
    """

    def __init__(self, folder: Path | str, bundle: Bundle, keep: int = _KEEP) -> None:
        self._model = bundle.manifest.files["model.onnx"].sha256
        self._size = bundle.manifest.adapter_size
        self.folder = Path(folder) / self._model[:16]
        self._files = SealedFolder(self.folder, "ADAPTER", _Record, keep, self._check)

    def save(self, adapter: np.ndarray, note: dict[str, Any] | None = None) -> int:
        """Store an adapter as the newest version. When this returns, it survives a loss of power.

        Args:
            adapter: float32 [A], finite.
            note: Why and when, with numbers; plain values or arrays.

        Returns:
            Its version.

        Raises:
            InputError: The adapter is not one of this network, or the note not plain.
            StoreError: The disk is full, read-only or failing; earlier versions are untouched.
        """
        values = np.asarray(adapter, np.float32)
        if values.shape != (self._size,) or not np.isfinite(values).all():
            raise InputError(
                f"adapter of shape {values.shape}, expected ({self._size},) and finite values"
            )
        record = _Record(
            model_sha256=self._model,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            adapter=values.astype(float).tolist(),
            note=plain(note or {}),
        )
        return self._files.write(record)

    def load(self, version: int | None = None) -> Stored | None:
        """A version, or the newest that can be used; None if there is none.

        A file that is cut off, altered, of another network or not an adapter is named in the log,
        renamed to end in ".rejected" and never used.
        """
        if version is None:
            found = self._files.newest()
            return None if found is None else self._stored(*found)
        record = self._files.read(version)
        return None if record is None else self._stored(version, record)

    def versions(self) -> list[Stored]:
        """All that can be used, oldest first."""
        return [self._stored(*found) for found in self._files.each()][::-1]

    def _stored(self, version: int, record: _Record) -> Stored:
        adapter = np.array(record.adapter, np.float32)
        path = self._files.path(version)
        return Stored(version, adapter, dict(record.note), record.created, path)

    def _check(self, record: _Record) -> None:
        if record.model_sha256 != self._model:
            raise Unusable(f"it was learnt on another network ({record.model_sha256[:12]}...)")
        if len(record.adapter) != self._size:
            raise Unusable(f"it has {len(record.adapter)} values, expected {self._size}")
        if np.abs(record.adapter).max(initial=0) > np.finfo(np.float32).max:
            raise Unusable("it holds a value beyond the range of float32")
