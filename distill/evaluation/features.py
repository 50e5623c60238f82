"""Features of a frozen encoder over images: pooled, of several views of an image, and dense."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.images import Images
from distill.data.views import jitter_colours, random_view, resize_image, sample_generator
from distill.encoders import Encoder
from edge_runtime.errors import InputError
from edge_runtime.terminal import progress_bar

log = logging.getLogger(__name__)
_BATCH = 64
_MIN_SCALE = 0.25  # of a view's crop


@dataclass(frozen=True)
class Features:
    """Pooled features of the images of a source.

    Attributes:
        pooled: float32 [N, D].
        labels: int64 [N], -1 where there is none.
        indices: [N], of the images within the source.
        broken: names of images that were left out, as they cannot be decoded.
    """

    pooled: Tensor
    labels: Tensor
    indices: np.ndarray
    broken: list[str]

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool((self.labels >= 0).all())


def normalised(encoder: Encoder, images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to what the encoder takes, float32 [B, 3, H, W], on its device."""
    device = next(encoder.parameters()).device
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std)
    )
    return (images.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.no_grad()
def features_of(encoder: Encoder, images: Iterable[np.ndarray], batch: int = _BATCH) -> Tensor:
    """Pooled features [N, D], on the CPU, of images uint8 [H, W, 3] of one size.

    The encoder is in evaluation mode meanwhile.
    """
    training = encoder.training
    encoder.eval()
    found: list[Tensor] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        x = normalised(encoder, torch.from_numpy(np.stack(waiting)))
        found.append(encoder.pooled(x).float().cpu())
        waiting.clear()

    try:
        for image in images:
            waiting.append(image)
            if len(waiting) == batch:
                flush()
        if waiting:
            flush()
    finally:
        encoder.train(training)
    return torch.cat(found) if found else torch.zeros(0, encoder.channels)


def drawn(count: int, limit: int | None, seed: int = 0) -> np.ndarray:
    """Indices of at most ``limit`` of ``count`` images, drawn at random, ascending."""
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 image")
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def extract(
    encoder: Encoder,
    source: Images,
    size: tuple[int, int],
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Features:
    """Pooled features of the images of a source; those that cannot be decoded are left out.

    Args:
        encoder: on any device.
        source: of `open_classified`.
        size: (height, width) that images are resized to, as the robot does.
        limit: at most so many images, drawn at random.
        seed: of the draw.
        progress: show a bar.

    Raises:
        InputError: none can be decoded.
    """
    indices: list[int] = []
    labels: list[int] = []
    broken: list[str] = []

    def read() -> Iterator[np.ndarray]:
        for index in _tracked(drawn(len(source), limit, seed), "features", progress):
            try:
                image = source.read(index)
            except InputError as error:
                log.warning("left out: %s", error)
                broken.append(source.name(index))
                continue
            label = source.label(index)
            labels.append(-1 if label is None else label)
            indices.append(index)
            yield resize_image(image, size)

    pooled = features_of(encoder, read())
    if not indices:
        raise InputError(f"no image can be decoded, first: {broken[0] if broken else 'none'}")
    return Features(pooled, torch.tensor(labels), np.array(indices), broken)


def _tracked(indices: Sequence[int] | np.ndarray, what: str, progress: bool) -> Iterator[int]:
    with progress_bar() as bar:
        bar.disable = not progress
        yield from bar.track([int(i) for i in indices], description=what)


def view_features(
    encoder: Encoder,
    source: Images,
    size: tuple[int, int],
    indices: Sequence[int] | np.ndarray,
    views: int,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Features [N, views, D] of random views of each image: crop, flip, colours, blur.

    A view is a crop of at least a quarter of the image; what it is depends on seed and image only,
    so that two encoders are judged by the same views.

    Raises:
        InputError: fewer than two views, or an image that cannot be decoded.
    """
    if views < 2:
        raise InputError(f"{views} views of an image, expected 2 or more")

    def draw() -> Iterator[np.ndarray]:
        for index in _tracked(indices, f"{views} views an image", progress):
            image = source.read(index)
            for view in range(views):
                rng = sample_generator(seed, view, index)
                yield jitter_colours(random_view(image, rng, size, _MIN_SCALE), rng)

    return features_of(encoder, draw()).unflatten(0, (-1, views))


@torch.no_grad()
def dense_features(encoder: Encoder, images: Sequence[np.ndarray]) -> Tensor:
    """Dense features [N, C, h, w], on the CPU, of images uint8 [H, W, 3] of one size."""
    training = encoder.training
    encoder.eval()
    try:
        maps = [
            encoder(normalised(encoder, torch.from_numpy(image)[None]))[0].float().cpu()
            for image in images
        ]
    finally:
        encoder.train(training)
    return torch.cat(maps)
