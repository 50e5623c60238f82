"""WebDataset shards by random access: an index of where each picture lies, made once a shard.

A shard is an uncompressed tar of members KEY.EXT; members of one key are a sample: a picture and
perhaps its class as text in KEY.cls (https://github.com/webdataset/webdataset, "the format").
Random access makes shuffling, sharing among processes and resuming exact.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import itertools
import os
import re
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_bytes
from edge_runtime.images import IMAGE_SUFFIXES, decode_image

_BLOCK = tarfile.BLOCKSIZE
_UNLABELLED = -1
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def is_shards(spec: str) -> bool:
    """Whether a data argument means shards: it ends as a tar does, compressed or not."""
    return re.search(r"\.(tar|tgz|tar\.\w+)$", spec) is not None


def expand(pattern: str) -> list[Path]:
    """Shard files of a pattern with ``{0000..0012}``, ``{a,b}``, ``*``, ``?``; in order.

    Raises:
        InputError: none, one that is absent, or a compressed one.
    """
    texts = _braces(pattern)
    paths = [Path(p) for t in texts for p in (sorted(glob.glob(t)) if glob.has_magic(t) else [t])]
    if not paths:
        raise InputError(f"no shard fits {pattern!r}; check the pattern, and quote it in a shell")
    for path in paths:
        if path.suffix != ".tar":
            raise InputError(f"{path}: a compressed shard has no random access; unpack it to .tar")
        if not path.is_file():
            raise InputError(f"{path}: no such shard (of {pattern!r}); check the pattern")
    return paths


def _braces(pattern: str) -> list[str]:
    parts: list[str] = []
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        parts = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    elif found := _CHOICE.search(pattern):
        parts = found.group(1).split(",")
    if not found:
        return [pattern]
    ends = pattern[: found.start()], pattern[found.end() :]
    return list(itertools.chain.from_iterable(_braces(f"{ends[0]}{p}{ends[1]}") for p in parts))


@dataclass
class ShardIndex:
    """Where the pictures of one shard lie, in its order.

    Attributes:
        names: key of each sample.
        offsets, sizes: bytes of its picture within the file, int64.
        labels: its class, int64, or -1.
        notes: what of the shard cannot be used, in words.
    """

    names: list[str] = field(default_factory=list)
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    notes: list[str] = field(default_factory=list)


def read_index(path: Path) -> ShardIndex:
    """The index of a shard, from the user's cache where it is there and the shard unchanged.

    Raises:
        InputError: the shard cannot be read or holds no picture.
    """
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = root / "fieldsight" / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with np.load(cached, allow_pickle=False) as kept:
            names, notes = kept["names"].tolist(), kept["notes"].tolist()
            return ShardIndex(names, kept["offsets"], kept["sizes"], kept["labels"], notes)
    index = build_index(path)
    with contextlib.suppress(OSError):  # a machine without a place for it reads the shard again
        _keep(cached, index)
    return index


def _keep(cached: Path, index: ShardIndex) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        names=np.array(index.names, dtype=np.str_),
        notes=np.array(index.notes, dtype=np.str_),
        offsets=index.offsets,
        sizes=index.sizes,
        labels=index.labels,
    )
    atomic_write_bytes(cached, buffer.getvalue())


def build_index(path: Path) -> ShardIndex:
    """Reads a shard's headers. What follows a damaged header is found again at the next sound one.

    Raises:
        InputError: no picture can be had from it.
    """
    index, end = ShardIndex(), path.stat().st_size
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    expected = 0
    try:
        with tarfile.open(path, "r:", ignore_zeros=True) as tar:
            for member in tar:
                _note_gap(index, path, expected, member.offset, f"before {member.name}")
                expected = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.offset_data + member.size > end:
                    index.notes.append(f"{path}: cut off within {member.name}")
                    break
                _take(tar, member, pictures, labels, index.notes)
            else:
                if end - expected < 2 * _BLOCK:
                    index.notes.append(f"{path}: without a tar's end mark, it may be cut off")
                else:
                    _note_gap(index, path, expected, end, "at its end")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        index.notes.append(f"{path}: cut off or damaged after {len(pictures)} pictures ({error})")
    if not pictures:
        raise InputError(
            f"{path}: no picture in it{'; ' + index.notes[0] if index.notes else ''}; expected an "
            f"uncompressed tar of KEY.jpg, KEY.png, ... and perhaps KEY.cls"
        )
    index.names = list(pictures)
    index.offsets, index.sizes = np.array(list(pictures.values()), np.int64).T.copy()
    index.labels = np.array([labels.get(n, _UNLABELLED) for n in pictures], np.int64)
    return index


def _note_gap(index: ShardIndex, path: Path, start: int, stop: int, where: str) -> None:
    """Notes bytes between members that are no padding: a header that could not be read."""
    with path.open("rb") as file:
        file.seek(start)
        if any(file.read(stop - start)):
            index.notes.append(f"{path}: damaged {where}, {stop - start} bytes left out")


def _take(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    pictures: dict[str, tuple[int, int]],
    labels: dict[str, int],
    notes: list[str],
) -> None:
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    if not member.isreg() or not stem:
        return
    if f".{suffix.lower()}" in IMAGE_SUFFIXES:
        if key in pictures:
            notes.append(f"{tar.name!s}: two pictures of the name {key}, the first is used")
        pictures.setdefault(key, (member.offset_data, member.size))
    elif suffix == "cls":
        content = tar.extractfile(member)
        text = content.read(32).decode("ascii", "replace").strip() if content else ""
        if text.isdigit() and len(text) < 10:
            labels[key] = int(text)
        else:
            notes.append(f"{tar.name!s}: {member.name} holds {text!r}, expected a class number")


class ShardImages:
    """Pictures of some shards, in order."""

    def __init__(self, pattern: str) -> None:
        self.paths = expand(pattern)
        self.indices = [read_index(p) for p in self.paths]
        self.notes = [n for i in self.indices for n in i.notes]
        self.starts = np.cumsum([0, *(len(i.names) for i in self.indices)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    def name(self, index: int) -> str:
        """Shard and key of a picture."""
        shard, i = self._place(index)
        return f"{self.paths[shard]}:{self.indices[shard].names[i]}"

    def label(self, index: int) -> int | None:
        """Class of a picture; None where it has none."""
        shard, i = self._place(index)
        label = int(self.indices[shard].labels[i])
        return None if label == _UNLABELLED else label

    def read(self, index: int) -> np.ndarray:
        """A picture, uint8 [H, W, 3] RGB.

        Raises:
            InputError: it cannot be decoded.
        """
        shard, i = self._place(index)
        entry = self.indices[shard]
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(int(entry.offsets[i]))
                data = file.read(int(entry.sizes[i]))
        except OSError as error:
            raise InputError(f"{self.name(index)}: cannot be read ({error.strerror})") from error
        return decode_image(data, self.name(index))

    def digest(self) -> str:
        """Hex SHA-256 of what the shards hold: their indices, and both ends of each file."""
        digest = hashlib.sha256()
        for path, entry in zip(self.paths, self.indices, strict=True):
            digest.update("\n".join([path.name, *entry.names]).encode())
            for array in (entry.offsets, entry.sizes, entry.labels):
                digest.update(array.tobytes())
            with path.open("rb") as file:
                digest.update(file.read(1 << 16))
                file.seek(max(path.stat().st_size - (1 << 16), 0))
                digest.update(file.read())
        return digest.hexdigest()
