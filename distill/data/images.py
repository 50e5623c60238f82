"""Unlabelled images of any source behind one face: files, ``dataset.yaml``, WebDataset shards."""

from __future__ import annotations

import hashlib
import logging
from typing import Protocol

import numpy as np
import torch

from distill.data.shards import ShardImages, is_shards
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.images import read_image

log = logging.getLogger(__name__)
_NAMED = 5


class Images(Protocol):
    """Pictures by number; ``notes`` says in words what of the source cannot be used."""

    notes: list[str]

    def __len__(self) -> int:
        """How many."""

    def read(self, index: int) -> np.ndarray:
        """A picture, uint8 [H, W, 3] RGB; InputError where it cannot be decoded."""

    def label(self, index: int) -> int | None:
        """Its class, where the source has one."""

    def name(self, index: int) -> str:
        """Where it lies."""

    def digest(self) -> str:
        """Identifies names and content."""


class FileImages:
    """The frames of a dataset without their labels."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> np.ndarray:
        """A picture, uint8 [H, W, 3] RGB."""
        return read_image(self.dataset.samples[index].image)

    def label(self, index: int) -> int | None:
        """None: datasets have masks and boxes, no classes."""
        del index
        return None

    def name(self, index: int) -> str:
        """The file."""
        return str(self.dataset.samples[index].image)

    def digest(self) -> str:
        """That of the dataset."""
        return self.dataset.digest()


class JoinedImages:
    """Several sources as one; a picture that cannot be decoded is replaced by the next one.

    Which ones were replaced is known in every process: ``broken`` lies in shared memory, so that
    what workers find is counted.
    """

    def __init__(self, sources: list[Images]) -> None:
        self.sources = sources
        self.starts = np.cumsum([0, *(len(s) for s in sources)])
        self.notes = [n for s in sources for n in s.notes]
        if not len(self):
            raise InputError("no images; give --data an image folder, a dataset.yaml or shards")
        self.broken = torch.zeros(len(self), dtype=torch.bool).share_memory_()
        for note in self.notes:
            log.warning("%s", note)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _at(self, index: int) -> tuple[Images, int]:
        source = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sources[source], index - int(self.starts[source])

    def read(self, index: int) -> np.ndarray:
        """The picture of a number, or where it cannot be decoded the next that can.

        Raises:
            InputError: none can.
        """
        for i in range(index, index + len(self)):
            i %= len(self)
            if not self.broken[i]:
                source, within = self._at(i)
                try:
                    return source.read(within)
                except InputError as error:
                    self.broken[i] = True
                    log.warning("left out: %s", error)
        raise InputError(f"none of {len(self)} images can be decoded; first: {self.name(0)}")

    def label(self, index: int) -> int | None:
        """Class of a picture, where its source has one."""
        source, within = self._at(index)
        return source.label(within)

    def name(self, index: int) -> str:
        """Where a picture lies."""
        source, within = self._at(index)
        return source.name(within)

    def digest(self) -> str:
        """Identifies all sources."""
        return hashlib.sha256("\n".join(s.digest() for s in self.sources).encode()).hexdigest()

    def problems(self) -> list[str]:
        """What was left out so far, in words: notes of the sources, and pictures by name."""
        found = torch.nonzero(self.broken).flatten().tolist()
        lines = list(self.notes)
        if found:
            named = ", ".join(self.name(i) for i in found[:_NAMED])
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            lines.append(f"{len(found)} of {len(self)} images cannot be decoded: {named}{more}")
        return lines


def open_images(specs: list[str], split: str = "train") -> JoinedImages:
    """Images of folders, ``dataset.yaml[:SPLIT]``, ``synthetic:SPEC`` and shards, joined.

    Args:
        specs: one a source; shards as a path or pattern that ends in .tar.
        split: of a dataset where its argument names none.

    Raises:
        InputError: a source cannot be read, or there is no image in any.
    """
    from distill.data.opening import open_data

    sources: list[Images] = []
    for spec in specs:
        sources.append(ShardImages(spec) if is_shards(spec) else FileImages(open_data(spec, split)))
    return JoinedImages(sources)
