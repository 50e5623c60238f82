"""Small records on disk that a crash, a bad sector or a stranger cannot make us believe.

A file is one line, `FIELDSIGHT-KIND-1 SHA256`, and then JSON whose SHA-256 that is: a person reads
it with `tail -n +2`. Files of a folder are numbered, `STEM-000000012.json`; the number alone says
which is newest, since a robot's clock may jump. Numbers are not given twice, and the last few files
are kept, so that behind a damaged one lies a whole one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pydantic_core
from pydantic import BaseModel, ValidationError

from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_bytes, fsync_folder

log = logging.getLogger(__name__)

_MOST_BYTES = 16 << 20
_LAST = 10**9 - 1  # a file of this number would be the newest for ever
_WAIT_S = 2.0  # for another writer, who needs milliseconds
Content = TypeVar("Content", bound=BaseModel)


class StoreError(InputError):
    """What was learnt cannot be written: the disk is full, read-only or failing.

    Nothing that lay there before is lost, and what is in memory can be used on.
    """


class Unusable(Exception):
    """A file is not used; its text says why."""


def seal(kind: str, content: BaseModel) -> bytes:
    """A record as the bytes of a file."""
    raw = content.model_dump_json().encode() + b"\n"
    return f"FIELDSIGHT-{kind}-1 {hashlib.sha256(raw).hexdigest()}\n".encode() + raw


def unseal(kind: str, data: bytes, model: type[Content]) -> Content:
    """The record in the bytes of a file.

    Raises:
        Unusable: They are not whole, not of this kind, or say what `model` does not allow.
    """
    head, newline, raw = data.partition(b"\n")
    expected = f"FIELDSIGHT-{kind}-1 ".encode()
    if not newline or not head.startswith(expected):
        raise Unusable(f"it is no file of kind {kind}, version 1, or its beginning is missing")
    if hashlib.sha256(raw).hexdigest().encode() != head[len(expected) :]:
        raise Unusable("it was cut off or altered: its checksum does not fit")
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise Unusable(f"{place}: {first['msg']}") from None


def read_plain(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Content of a plain file of at most `most` bytes; never follows a link or waits on a pipe.

    Raises:
        Unusable: It is something else, too large, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags)
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise Unusable("it is not a plain file")
            if info.st_size > most:
                raise Unusable(f"it has {info.st_size} bytes, at most {most} are expected")
            with os.fdopen(os.dup(handle), "rb") as file:
                return file.read(most + 1)[:most]
        finally:
            os.close(handle)
    except OSError as error:
        raise Unusable(f"it cannot be read ({error.strerror})") from None


def plain(value: Any) -> Any:
    """A note as JSON knows it: arrays become lists, what is not finite null.

    Raises:
        InputError: It holds what JSON has no form for.
    """
    try:
        raw = pydantic_core.to_json(value, inf_nan_mode="null", fallback=_array_as_list)
        return pydantic_core.from_json(raw)
    except (ValueError, TypeError) as error:
        raise InputError(f"a note must hold plain values: {error}") from None


def _array_as_list(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


class SealedFolder(Generic[Content]):
    """The last `keep` versions of a record.

    Args:
        folder: Made when first written to.
        kind: What the files say they are, such as "ADAPTER".
        model: Schema of the record.
        keep: Versions to keep.
        check: Looks at a record that is whole and raises `Unusable` if it is not to be used here.
    """

    def __init__(
        self, folder: Path | str, kind: str, model: type[Content], keep: int, check: Any = None
    ) -> None:
        if keep < 1:
            raise InputError(f"{keep} versions to keep, expected at least 1")
        self.folder, self.kind, self.model, self.keep = Path(folder), kind, model, keep
        self._check = check
        self._stem = kind.lower()
        self._name = re.compile(rf"{self._stem}-(\d{{9}})\.(json|rejected)")

    def path(self, version: int) -> Path:
        """Where a version lies, if it does."""
        return self.folder / f"{self._stem}-{version:09d}.json"

    def latest(self) -> int:
        """The highest number given to a file so far, usable or not; 0 if none was."""
        return max([0, *(version for version, _ in self._listed())])

    def write(self, content: Content, after: int | None = None) -> int:
        """Write the next version and let the oldest go.

        Args:
            content: The record.
            after: What `latest` must still give, for a record that was made from what it said.

        Raises:
            InputError: It is too large to be read again.
            StoreError: It cannot be written; the versions before it are untouched.
        """
        data = seal(self.kind, content)
        if len(data) > _MOST_BYTES:
            raise InputError(f"{len(data)} bytes to keep, at most {_MOST_BYTES} can be read again")
        try:
            with self._locked():
                version = self.latest() + 1
                if after is not None and version != after + 1:
                    raise OSError(0, "another process has just written there")
                atomic_write_bytes(self.path(version), data)
                self._prune()
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot keep what was learnt ({error.strerror}); make room or "
                "name a folder that can be written. It is lost when the program ends"
            ) from None
        return version

    def read(self, version: int) -> Content | None:
        """A version; None if there is none to use. One that is no good is set aside."""
        path = self.path(version)
        try:
            if not path.is_symlink() and not path.exists():
                return None
            content = unseal(self.kind, read_plain(path), self.model)
            if self._check is not None:
                self._check(content)
            return content
        except Unusable as why:
            self._set_aside(path, str(why))
            return None
        except OSError as error:
            log.warning("%s: cannot be looked at: %s", path, error.strerror)
            return None

    def newest(self) -> tuple[int, Content] | None:
        """The newest version that can be used."""
        return next(self.each(), None)

    def each(self) -> Iterator[tuple[int, Content]]:
        """The versions that can be used, newest first."""
        for version, suffix in sorted(self._listed(), reverse=True):
            if suffix == "json" and (content := self.read(version)) is not None:
                yield version, content

    def _listed(self) -> list[tuple[int, str]]:
        """Version and suffix of every file, whatever is in it; none if there is no folder."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        found = (self._name.fullmatch(name) for name in names)
        return [(int(m[1]), m[2]) for m in found if m and int(m[1]) < _LAST]

    def _set_aside(self, path: Path, why: str) -> None:
        aside = path.with_suffix(".rejected")
        try:
            os.replace(path, aside)
            log.warning("%s is not used: %s; it was renamed to %s", path, why, aside.name)
        except OSError as error:
            log.warning("%s is not used: %s; renaming it failed: %s", path, why, error.strerror)

    def _prune(self) -> None:
        """Remove what is more than is kept, and what writers that were killed left behind."""
        for suffix in ("json", "rejected"):
            versions = sorted(v for v, s in self._listed() if s == suffix)
            for version in versions[: -self.keep]:
                with contextlib.suppress(OSError):
                    self.path(version).with_suffix(f".{suffix}").unlink()
        for left in self.folder.glob(f".{self._stem}-*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only writer; the folder is there then.

        Raises:
            OSError: It cannot be made, or another writer does not let go.
        """
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            fsync_folder(self.folder.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(self.folder / f".{self._stem}.lock", flags, 0o644)
        try:
            deadline = time.monotonic() + _WAIT_S
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise OSError(0, "another process is writing there") from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(handle)
