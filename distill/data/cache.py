"""Teacher features on disk: later epochs never run the teacher."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from distill.data.views import UnlabelledViews, jitter_colours, sample_generator
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text

TeacherPass = Callable[[Tensor], list[tuple[Tensor, Tensor]]]


class FeatureCache:
    """Views and their teacher features for one input size, memory-mapped.

    Layout of ``folder``: ``views.npy`` uint8 [V * N, H, W, 3] and per teacher ``dense_I.npy``
    float16 [V * N, C, h, w] and ``pooled_I.npy`` float16 [V * N, C']. Row ``v * N + i`` is view v
    of image i. A cache counts only once ``done.json`` is there: an interrupted one is made again.
    """

    def __init__(self, folder: Path, count: int, views: int) -> None:
        self.folder, self.count, self.views = folder, count, views
        try:
            teachers = json.loads((folder / "done.json").read_text())["teachers"]
            self.images = self._open("views")
            self.targets = [
                (self._open(f"dense_{i}"), self._open(f"pooled_{i}")) for i in range(teachers)
            ]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"feature cache {folder} cannot be read ({error}): delete it to have it remade"
            ) from error
        wrong = [len(a) for a in (self.images, *sum(self.targets, ())) if len(a) != count * views]
        if wrong:
            raise InputError(
                f"feature cache {folder} holds {wrong[0]} rows, expected {count * views}: "
                "delete it to have it remade"
            )

    def _open(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    @staticmethod
    def key(parts: list[str]) -> str:
        """Name of the cache that these ingredients make."""
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]

    @classmethod
    def build(
        cls,
        folder: Path,
        views: UnlabelledViews,
        size: tuple[int, int],
        count: int,
        teacher: TeacherPass,
        advance: Callable[[int], None],
        batch: int = 16,
    ) -> FeatureCache:
        """Opens the cache in ``folder``, making it first where it is not complete."""
        if not (folder / "done.json").is_file():
            work = folder.with_name(f"{folder.name}.{os.getpid()}.part")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            cls._fill(work, views, size, count, teacher, advance, batch)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(work, folder)
        return cls(folder, len(views), count)

    @staticmethod
    def _fill(
        work: Path,
        views: UnlabelledViews,
        size: tuple[int, int],
        count: int,
        teacher: TeacherPass,
        advance: Callable[[int], None],
        batch: int,
    ) -> None:
        total = len(views) * count
        maps: dict[str, np.memmap] = {}

        def store(name: str, first: int, values: np.ndarray) -> None:
            if name not in maps:
                maps[name] = np.lib.format.open_memmap(
                    work / f"{name}.npy", "w+", values.dtype, (total, *values.shape[1:])
                )
            maps[name][first : first + len(values)] = values

        teachers = 0
        for first in range(0, total, batch):
            rows = range(first, min(first + batch, total))
            images = np.stack([views.view(r // len(views), r % len(views), size) for r in rows])
            store("views", first, images)
            features = teacher(torch.from_numpy(images))
            teachers = len(features)
            for i, (dense, pooled) in enumerate(features):
                store(f"dense_{i}", first, dense.half().cpu().numpy())
                store(f"pooled_{i}", first, pooled.half().cpu().numpy())
            advance(len(rows))
        for array in maps.values():
            array.flush()
        atomic_write_text(work / "done.json", json.dumps({"teachers": teachers}))


class CachedViews(TorchDataset[dict[str, Tensor]]):
    """The cached counterpart of ``UnlabelledViews``; items carry ``dense_I`` and ``pooled_I``."""

    def __init__(self, caches: dict[tuple[int, int], FeatureCache], settings, seed: int) -> None:  # noqa: ANN001
        self.caches, self.settings, self.seed = caches, settings, seed

    def __len__(self) -> int:
        return next(iter(self.caches.values())).count

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = item
        cache = self.caches[tuple(self.settings.size_at(epoch))]
        row = (epoch % cache.views) * cache.count + index
        rng = sample_generator(self.seed + 1, epoch, index)
        image = jitter_colours(np.array(cache.images[row]), rng)
        out = {"image": torch.from_numpy(image)}
        for i, (dense, pooled) in enumerate(cache.targets):
            out[f"dense_{i}"] = torch.from_numpy(np.array(dense[row]))
            out[f"pooled_{i}"] = torch.from_numpy(np.array(pooled[row]))
        return out
