"""The folder in which an adapter node keeps what it learnt, and whether it was told to freeze."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from edge_runtime import InputError
from edge_runtime.adaptation.frame_memory import FrameMemory
from edge_runtime.adaptation.known_places import known_places
from edge_runtime.adaptation.memory import Place, PlaceMemory
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.store import AdapterStore, StoreError
from edge_runtime.bundle import Bundle
from edge_runtime.files import atomic_write_text, fsync_folder


def default_folder(node: str) -> Path:
    """Where the state of the node of this fully qualified name is kept, unless told otherwise."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "fieldsight" / node.strip("/")


class Problems:
    """Counts what could not be written.

    Attributes:
        count: How often.
        last: Why, the last time; empty once something could be written again.
    """

    def __init__(self) -> None:
        self.count, self.last = 0, ""

    def note(self, error: Exception) -> None:
        """Count one."""
        self.count, self.last = self.count + 1, str(error)


class StateFolder:
    """One node's folder. Where it cannot be written, that is a problem and no error.

    Args:
        path: Made if needed.

    Attributes:
        problems: With writing.

    Raises:
        InputError: Another node uses the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.problems = path, Problems()
        self._lock: int | None = None
        self._marker = path / "frozen"
        self._frozen = False
        try:
            self._frozen = self._marker.exists()
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise InputError(
                f"{path}: another adapter node uses this folder; give each its own state_folder"
            ) from None
        except OSError as error:
            self._cannot(error)

    def _cannot(self, error: OSError) -> None:
        self.problems.note(InputError(f"{self.path}: cannot be used ({error.strerror})"))

    @property
    def frozen(self) -> bool:
        """Whether learning was stopped; outlives the process where it can be written down."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._frozen = frozen
        try:
            if frozen:
                atomic_write_text(self._marker, "by ~/freeze\n")
            else:
                with contextlib.suppress(FileNotFoundError):
                    self._marker.unlink()
                fsync_folder(self.path)
        except OSError as error:
            self._cannot(error)

    def store(self, bundle: Bundle) -> AdapterStore:
        """The adapters in this folder."""
        return _Store(self, bundle)

    def memory(self, bundle: Bundle) -> PlaceMemory:
        """The places in this folder."""
        return _Memory(self, bundle)

    def frames(self, bundle: Bundle, most: int) -> FrameMemory | None:
        """The frames in this folder, at most so many; None if none are to be kept."""
        return FrameMemory(self.path / "frames", bundle, most) if most else None

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _Store(AdapterStore):
    def __init__(self, folder: StateFolder, bundle: Bundle) -> None:
        super().__init__(folder.path, bundle)
        self._problems = folder.problems

    def save(self, adapter, note=None):  # type: ignore[no-untyped-def]
        try:
            version = super().save(adapter, note)
        except StoreError as error:
            self._problems.note(error)
            raise
        self._problems.last = ""
        return version


class _Memory(PlaceMemory):
    def __init__(self, folder: StateFolder, bundle: Bundle) -> None:
        super().__init__(Reference.of(bundle), folder.path, known=known_places(bundle))
        self._problems = folder.problems

    def remember(self, signature, adapter, note=None) -> Place:  # type: ignore[no-untyped-def]
        try:
            return super().remember(signature, adapter, note)
        except StoreError as error:
            self._problems.note(error)
            raise
