"""The record of what was decided and by which numbers: JSON lines that an engineer can read.

A line is written in one append. A loss of power can cut the last one off; reading leaves it out
and the next append starts a line of its own.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_runtime.errors import InputError

log = logging.getLogger(__name__)

_RECENT = 100


class DecisionLog:
    """Appends decisions to a file that does not grow without end, and never fails its caller.

    Args:
        path: Decisions go there, and the file before it to `path` with ".1" added; None keeps the
            recent ones in memory alone.
        most_bytes: Size at which a new file is begun.

    Attributes:
        recent: The last hundred, newest last.
        lost: Decisions that could not be written, for want of room or of a folder.
    """

    def __init__(self, path: Path | str | None = None, most_bytes: int = 4 << 20) -> None:
        self.path = None if path is None else Path(path)
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self.lost = 0
        self._most = most_bytes

    def write(self, kind: str, frame: int, **fields: Any) -> dict[str, Any]:
        """Record one decision.

        Args:
            kind: Such as "judge", "alarm", "rollback".
            frame: How many frames had been seen; the clock may jump, this does not.
            fields: What json can hold; numbers that are not finite become null.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = _finite({"kind": kind, "frame": frame, "time": now, **fields})
        self.recent.append(record)
        if self.path is not None:
            try:
                self._append(self.path, json.dumps(record, allow_nan=False).encode() + b"\n")
            except OSError as error:
                self.lost += 1
                if self.lost == 1:  # once: a full disk would fill the console as well
                    log.warning("%s: decisions are not recorded: %s", self.path, error.strerror)
        return record

    def _append(self, path: Path, line: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(path, flags, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            written = os.write(handle, line)
        finally:
            os.close(handle)
        if size + written > self._most:
            os.replace(path, path.with_name(f"{path.name}.1"))


def read_decisions(path: Path | str) -> Iterator[dict[str, Any]]:
    """The decisions of a file, oldest first; lines that are no JSON object are left out, counted.

    Raises:
        InputError: The file cannot be read.
    """
    broken = 0
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if isinstance(record, dict):
                    yield record
                else:
                    broken += 1
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if broken:
        log.warning("%s: %d lines are no decisions and were left out", path, broken)


def _finite(value: Any) -> Any:
    """The value as plain JSON types: arrays as lists, what is not finite as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
