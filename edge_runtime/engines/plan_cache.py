"""Built plans on disk: each in one file with what it was built from and with, checked before use.

A file is `FSPLAN1\\n`, the SHA-256 of the header, the header's length (uint32, little endian), the
header (JSON) and the content, whose SHA-256 and size the header holds. The folder is
`$FIELDSIGHT_CACHE/tensorrt`, else `$XDG_CACHE_HOME/fieldsight/tensorrt`, else
`~/.cache/fieldsight/tensorrt`. TensorRT runs what a plan says, so a plan is as trusted as a
program: files that another user could have written are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from edge_runtime.errors import InputError, explain_validation
from edge_runtime.files import atomic_write_bytes
from edge_runtime.manifest import Spec

log = logging.getLogger(__name__)
_MAGIC = b"FSPLAN1\n"
_START = len(_MAGIC) + 32 + 4  # where the header begins
_MAX_HEADER = 1 << 16
_MAX_FILE = 4 << 30
Kind = Literal["plan", "timing", "options"]


class PlanKey(Spec):
    """Everything that a plan depends on. Plans are used only under an equal key.

    Attributes:
        model_sha256: Of the ONNX file.
        precision: Of its tensors.
        tensorrt: Full version.
        gpu: The GPU's name.
        capability: Its compute capability, such as "8.7".
        workspace_mib: See `TensorRTSpec`.
        optimization_level: See `TensorRTSpec`.
        dla_core: See `TensorRTSpec`.
    """

    model_sha256: str
    precision: str
    tensorrt: str
    gpu: str
    capability: str
    workspace_mib: int = 0
    optimization_level: int = 0
    dla_core: int | None = None

    def file_name(self, kind: Kind) -> str:
        """Name of the file that holds what was made under this key."""
        text = json.dumps([kind, self.model_dump()], sort_keys=True)
        return f"{self.precision}-{hashlib.sha256(text.encode()).hexdigest()[:40]}.{kind}"


class Header(Spec):
    """What travels with a plan."""

    kind: Kind
    key: PlanKey
    created: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Unusable(Exception):
    """A cached file cannot be used; its text says why."""


class PlanCache:
    """A folder of plans, timing caches and build options.

    Args:
        folder: Made if absent; `default_folder()` if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def path(self, key: PlanKey, kind: Kind = "plan") -> Path:
        """Where the content of this key lies, if it does."""
        return self.folder / key.file_name(kind)

    def load(self, key: PlanKey, kind: Kind = "plan") -> bytes | None:
        """The content made under exactly this key; None if there is none to use.

        A file that is damaged, of another key or of another user is never used; the log says why.
        """
        path = self.path(key, kind)
        try:
            return _unpack(_read(path), kind, key)
        except FileNotFoundError:
            return None
        except (Unusable, OSError) as error:
            log.warning("%s is not used: %s; it will be made again", path, error)
            return None

    def store(self, key: PlanKey, content: bytes, kind: Kind = "plan") -> Path:
        """Write content and header as one file, in one atomic step.

        Raises:
            InputError: The folder cannot be written.
        """
        header = Header(
            kind=kind,
            key=key,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
        )
        raw = header.model_dump_json().encode()
        path = self.path(key, kind)
        start = _MAGIC + hashlib.sha256(raw).digest() + len(raw).to_bytes(4, "little")
        with self._writing():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write_bytes(path, start + raw + content)
            path.chmod(0o600)
        return path

    def set_aside(self, key: PlanKey) -> Path | None:
        """Rename a plan so that it is not used again but can be looked at; None if it was gone."""
        path = self.path(key)
        aside = path.with_suffix(".rejected")
        with self._writing():
            try:
                os.replace(path, aside)
            except FileNotFoundError:
                return None
        return aside

    @contextlib.contextmanager
    def lock(self, key: PlanKey) -> Iterator[None]:
        """Hold this key: another process that wants to build the same plan waits here."""
        path = self.path(key).with_suffix(".lock")
        with self._writing():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("another process builds the same plan; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the plan cache {self.folder} cannot be written ({error}); free space there, or "
                "set FIELDSIGHT_CACHE to a folder that this user may write"
            ) from None


def default_folder() -> Path:
    """Where plans are kept; see the module's first lines.

    Raises:
        InputError: No such folder can be named.
    """
    if chosen := os.environ.get("FIELDSIGHT_CACHE"):
        return Path(chosen).expanduser().absolute() / "tensorrt"
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).absolute() / "fieldsight" / "tensorrt"
    try:
        return Path.home() / ".cache" / "fieldsight" / "tensorrt"
    except RuntimeError:
        raise InputError("this user has no home folder; set FIELDSIGHT_CACHE to a folder") from None


def _read(path: Path) -> bytes:
    """The whole of a plain file that nobody but this user or root can have written."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise Unusable("it is not a plain file")
        if info.st_uid not in (os.getuid(), 0) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unusable("another user could have written it")
        if info.st_size > _MAX_FILE:
            raise Unusable(f"it has {info.st_size} bytes, more than any plan")
        return file.read(info.st_size)


def _unpack(data: bytes, kind: Kind, key: PlanKey) -> bytes:
    """Content of a file's bytes, after every check.

    Raises:
        Unusable: Says which check failed.
    """
    if not data.startswith(_MAGIC) or len(data) < _START:
        raise Unusable("it is no plan of this version of fieldsight, or a part of one")
    length = int.from_bytes(data[_START - 4 : _START], "little")
    raw = data[_START : _START + length]
    if length > _MAX_HEADER or len(raw) != length:
        raise Unusable("its header is cut short")
    if hashlib.sha256(raw).digest() != data[len(_MAGIC) : _START - 4]:
        raise Unusable("its header was altered")
    header = _parse(raw)
    if (header.kind, header.key) != (kind, key):
        raise Unusable(f"it is stale: {_difference(header, kind, key)}")
    content = data[_START + length :]
    if len(content) != header.size:
        raise Unusable(f"it has {len(content)} bytes of content, expected {header.size}")
    if hashlib.sha256(content).hexdigest() != header.sha256:
        raise Unusable("its content was altered: the SHA-256 differs from the header's")
    return content


def _parse(raw: bytes) -> Header:
    try:
        return Header.model_validate_json(raw)
    except ValidationError as error:
        raise Unusable(explain_validation(error, Header, "its header")) from None


def _difference(header: Header, kind: Kind, key: PlanKey) -> str:
    found: dict[str, Any] = {"kind": header.kind, **header.key.model_dump()}
    wanted = {"kind": kind, **key.model_dump()}
    return ", ".join(
        f"{name} is {found[name]!r}, expected {value!r}"
        for name, value in wanted.items()
        if found[name] != value
    )
