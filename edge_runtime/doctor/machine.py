"""A machine as the doctor sees it: files below a root, commands with a time limit, packages.

Nothing it reads is trusted: files are read up to a limit, commands are stopped after one, and what
comes back is printable text.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIMIT_BYTES = 1 << 16  # read of a file or of a command's output
LIMIT_S = 5.0  # a command may take
Runner = Callable[[Sequence[str]], str | None]
_UNPRINTABLE = re.compile(r"[^\n\t -~\u00a0-\uffff]")


class NoAnswer(Exception):
    """A command is there but gave no answer."""


def run_command(words: Sequence[str], limit_s: float = LIMIT_S) -> str | None:
    """Run a command and return what it printed, at most `LIMIT_BYTES`.

    Args:
        words: Program and arguments.
        limit_s: Seconds after which it and its children are killed.

    Returns:
        Standard output, or None where there is no such program or it failed.

    Raises:
        NoAnswer: It took too long.
    """
    if shutil.which(words[0]) is None:
        return None
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    finished = False
    try:
        output, finished = _read(process, time.monotonic() + limit_s)
    finally:
        _end(process, finished)
    if not finished:
        raise NoAnswer(f"'{' '.join(words)}' did not answer within {limit_s:g} s")
    return printable(output) if process.returncode == 0 or len(output) >= LIMIT_BYTES else None


def _read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """What a process printed until its end, a limit or the deadline; whether it was in time."""
    assert process.stdout is not None
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(output) < LIMIT_BYTES:
            if not selector.select(max(0, deadline - time.monotonic())):
                return output, False
            piece = os.read(process.stdout.fileno(), LIMIT_BYTES - len(output))
            if not piece:
                break
            output += piece
    if len(output) >= LIMIT_BYTES:
        return output, True
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return output, False
    return output, True


def _end(process: subprocess.Popen[bytes], finished: bool) -> None:
    """Kill a process that did not finish, and the children that it may have left behind."""
    assert process.stdout is not None
    if process.poll() is None or not finished:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def printable(data: bytes) -> str:
    """As text, without the control characters that could drive a terminal."""
    return _UNPRINTABLE.sub("", data.decode("utf-8", "replace")).strip()


class Machine:
    """What there is to ask.

    Args:
        root: Folder that stands for "/".
        run: Runs a command; see `run_command`.
        environ: Environment variables.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        run: Runner = run_command,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.ask = run
        self.environ = os.environ if environ is None else environ

    def path(self, name: str) -> Path:
        """Where the file of this absolute name lies."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """A file's text, at most `LIMIT_BYTES`; None where it cannot be read."""
        path = self.path(name)
        try:
            if not path.is_file():
                return None
            with open(path, "rb") as file:
                return printable(file.read(LIMIT_BYTES))
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """A file's whole number; None where it holds none."""
        text = self.read(name) or ""
        return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None

    def glob(self, pattern: str) -> list[str]:
        """Absolute names that match, sorted; numbers in them count as such."""
        found = (f"/{path.relative_to(self.root)}" for path in self.root.glob(pattern.lstrip("/")))
        return sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d{1,9}", name)])

    def space(self, name: str) -> tuple[int, int] | None:
        """Size and free bytes of the file system at `name`; None where there is none."""
        try:
            usage = shutil.disk_usage(self.path(name))
        except OSError:
            return None
        return usage.total, usage.free

    def can_use(self, name: str) -> bool:
        """Whether this user may read and write a file."""
        return os.access(self.path(name), os.R_OK | os.W_OK)

    def has_module(self, name: str) -> bool:
        """Whether Python could import a module; folders without code do not count."""
        spec = importlib.util.find_spec(name)
        return spec is not None and spec.origin is not None

    def version(self, package: str) -> str | None:
        """A Python package's version; None where it is not installed."""
        try:
            return version(package)
        except PackageNotFoundError:
            return None
