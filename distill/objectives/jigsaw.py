"""Jigsaw: how the tiles of an image were shuffled."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms import v2 as T

from distill.encoders import Encoder
from distill.objectives.protocol import Objective, ObjectiveOptions, Views, register_objective
from edge_runtime.errors import InputError

_CANDIDATES = 20_000


class JigsawOptions(ObjectiveOptions):
    """Hyper-parameters of jigsaw; the paper's are 3 x 3 tiles of 64 px in cells of 75."""

    min_scale: float = Field(0.5, gt=0, le=1, description="smallest crop, as share of the area")
    grid: int = Field(3, ge=2, le=4, description="tiles a side")
    permutations: int = Field(100, ge=2, le=1000)
    tile: float = Field(0.85, gt=0, le=1, description="side of a tile as share of its cell")
    grey: float = Field(0.3, ge=0, le=1, description="probability of an image without colour")
    width: int = Field(256, ge=8, description="per tile, before tiles are joined")
    hidden: int = Field(1024, ge=8)


@lru_cache(maxsize=8)
def permutations(tiles: int, count: int) -> np.ndarray:
    """Permutations, int64 [min(count, all), tiles], that are far apart in Hamming distance.

    Noroozi and Favaro 2016, algorithm 1: greedily the one that is farthest from those chosen, here
    from the nearest of them and then from all; with many tiles among 20,000 drawn at random.
    """
    rng = np.random.default_rng(0)
    if tiles <= 7:
        pool = np.array(list(itertools.permutations(range(tiles))))
    else:
        pool = rng.permuted(np.tile(np.arange(tiles), (_CANDIDATES, 1)), axis=1)
        pool = np.unique(pool, axis=0)
    chosen = [int(rng.integers(len(pool)))]
    nearest = np.full(len(pool), tiles)
    total = np.zeros(len(pool), np.int64)
    while len(chosen) < min(count, len(pool)):
        distance = (pool != pool[chosen[-1]]).sum(1)
        nearest, total = np.minimum(nearest, distance), total + distance
        chosen.append(int(np.argmax(nearest * (tiles * count + 1) + total)))
    return pool[chosen]


def tile_side(cell: int, share: float, unit: int) -> int:
    """Side of a tile in a cell of so many pixels: a multiple of the patch."""
    return max(int(cell * share) // unit, 1) * unit


class _Shuffled:
    """An image to its tiles [n, 3, t, t] in shuffled order and the number of the permutation."""

    def __init__(self, options: JigsawOptions, size: tuple[int, int], unit: int) -> None:
        self.grid, self.grey = options.grid, options.grey
        self.cell = (size[0] // options.grid, size[1] // options.grid)
        self.side = tile_side(min(self.cell), options.tile, unit)
        self.crop = T.RandomResizedCrop(size, (options.min_scale, 1.0), antialias=True)
        self.orders = permutations(options.grid**2, options.permutations)

    def __call__(self, image: Tensor) -> list[Tensor]:
        view = self.crop(image).float() / 255
        if torch.rand(()) < self.grey:
            view = view.mean(0, keepdim=True).expand(3, -1, -1)
        gap = torch.tensor([c - self.side + 1 for c in self.cell])
        tiles = []
        for row, column in itertools.product(range(self.grid), repeat=2):
            # A random place in its cell: edges of neighbours do not continue each other.
            y, x = (torch.rand(2) * gap).long().tolist()
            y, x = y + row * self.cell[0], x + column * self.cell[1]
            tiles.append(view[:, y : y + self.side, x : x + self.side])
        label = int(torch.randint(len(self.orders), ()))
        ordered = torch.stack(tiles)[torch.from_numpy(self.orders[label])]
        return [standardised(ordered), torch.tensor(label)]


def standardised(tiles: Tensor) -> Tensor:
    """Tiles [n, 3, t, t] each with mean 0 and deviation 1, so that none tells its brightness."""
    mean = tiles.mean((1, 2, 3), keepdim=True)
    return (tiles - mean) / (tiles.std((1, 2, 3), keepdim=True) + 1e-2)


@register_objective("jigsaw")
class Jigsaw(Objective):
    """Predicts the permutation of tiles from the pooled features of each tile.

    Noroozi and Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw
    Puzzles", section 3: tiles pass the trunk one by one and meet only in the head (context-free
    network). Against shortcuts: gaps between tiles, every tile standardised by itself, some images
    grey (section 3.4). Takes any trunk.
    """

    kind = "pretext"
    Options = JigsawOptions
    options: JigsawOptions

    def __init__(self, encoder: Encoder, options: JigsawOptions) -> None:
        super().__init__(encoder, options)
        tiles = options.grid**2
        classes = len(permutations(tiles, options.permutations))
        self.embed = nn.Sequential(nn.Linear(encoder.channels, options.width), nn.ReLU())
        self.head = nn.Sequential(
            nn.Linear(options.width * tiles, options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, classes),
        )

    @classmethod
    def views(  # type: ignore[override]
        cls, options: JigsawOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """Shuffled tiles [n, 3, t, t] and the number of their permutation.

        Raises:
            InputError: a tile would be smaller than a patch of the trunk.
        """
        unit = encoder.stride if encoder.is_vit else 1
        cell = min(size) // options.grid
        if cell < max(unit, 4):
            raise InputError(
                f"jigsaw cuts {size[0]}x{size[1]} into cells of {cell} px, less than the "
                f"{max(unit, 4)} px that a tile needs; give a larger size or a smaller options.grid"
            )
        return _Shuffled(options, size, unit)

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and accuracy of tiles [B, n, 3, t, t] and permutations [B]."""
        tiles, label = batch
        pooled = self.encoder.pooled(tiles.flatten(0, 1))
        logits = self.head(self.embed(pooled).view(len(tiles), -1)).float()
        return {
            "loss": F.cross_entropy(logits, label),
            "accuracy": (logits.argmax(1) == label).float().mean(),
        }
