"""Objects without labels: groups of cells as masks, and how well they cover labelled regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from distill.data.views import resize_image
from distill.encoders import Encoder
from distill.evaluation.features import normalised
from distill.evaluation.page import colours
from distill.objectives.slotmim import SlotMIM
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError

_TOKENS = 20_000  # that clusters are fitted to
LEAST_REGION = 100  # pixels


class Grouper(Protocol):
    """Assigns the cells of a dense map to groups."""

    def scores(self, images: Tensor) -> Tensor:
        """How well each group fits each cell, [B, K, h, w], of images uint8 [B, H, W, 3]."""


@dataclass(frozen=True)
class PrototypeGroups:
    """The prototypes that SlotMIM has learnt."""

    objective: SlotMIM

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """The teacher's cosines with the prototypes."""
        training = self.objective.training
        self.objective.eval()
        found = self.objective.assign(normalised(self.objective.kept(), images)).float()
        self.objective.train(training)
        return found


@dataclass(frozen=True)
class ClusterGroups:
    """K-means clusters of the dense features of any trunk: what prototypes have to beat.

    Attributes:
        encoder: in evaluation mode.
        centres: [K, C], of features of unit length.
    """

    encoder: Encoder
    centres: Tensor

    @classmethod
    def fit(
        cls, encoder: Encoder, images: Sequence[np.ndarray], clusters: int, seed: int = 0
    ) -> ClusterGroups:
        """Clusters the cells of images, uint8 [H, W, 3] of one size; 20,000 cells at most.

        Raises:
            InputError: there are fewer cells than clusters.
        """
        encoder.eval()
        tokens = torch.cat(
            [_unit_features(encoder, torch.from_numpy(i)[None]).flatten(2)[0].T for i in images]
        )
        if len(tokens) < clusters:
            raise InputError(
                f"{len(tokens)} cells of {len(images)} images are fewer than {clusters} clusters; "
                "give more or larger images"
            )
        chosen = np.random.default_rng(seed).permutation(len(tokens))[:_TOKENS]
        found = KMeans(clusters, n_init=1, random_state=seed).fit(tokens[chosen].cpu().numpy())
        return cls(encoder, torch.from_numpy(found.cluster_centers_).float())

    def scores(self, images: Tensor) -> Tensor:
        """Minus half the squared distance to the centres, up to a constant of each cell."""
        features = _unit_features(self.encoder, images)
        centres = self.centres.to(features)
        dots = torch.einsum("bchw,kc->bkhw", features, centres)
        return dots - centres.square().sum(1)[None, :, None, None] / 2


@torch.no_grad()
def _unit_features(encoder: Encoder, images: Tensor) -> Tensor:
    return F.normalize(encoder(normalised(encoder, images))[0].float(), dim=1)


def groups_of(grouper: Grouper, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The best group of every pixel, int32 [H, W], of an image uint8 [H, W, 3].

    Args:
        size: (height, width) at which the trunk sees it. Scores are brought to the image's size
            bilinearly before the best is taken, so that outlines are finer than cells.
    """
    scores = grouper.scores(torch.from_numpy(resize_image(image, size))[None])
    present = scores.flatten(2)[0].argmax(0).unique()
    # Groups that are best in no cell would be seams between others, and cost memory.
    up = F.interpolate(
        scores[:, present], size=image.shape[:2], mode="bilinear", align_corners=False
    )
    best = present[up[0].argmax(0)]
    return np.asarray(best.cpu().numpy(), np.int32)


def connected(labels: np.ndarray, ignore: int | None = None, least: int = 1) -> np.ndarray:
    """Connected regions (4-neighbours) of equal label as int32 [H, W], numbered from 1; 0: none.

    Args:
        ignore: a label that makes no region.
        least: pixels; smaller regions are left out.
    """
    out = np.zeros(labels.shape, np.int32)
    count = 0
    for label in np.unique(labels):
        if label == ignore:
            continue
        found, parts, stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=4
        )
        for part in range(1, found):
            if stats[part, cv2.CC_STAT_AREA] >= least:
                count += 1
                out[parts == part] = count
    return out


def best_overlaps(masks: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Of every region the best intersection over union with any mask, float64 [R].

    Args:
        masks: int32 [H, W] numbered from 1, as of ``connected``.
        regions: the same of the labels.
    """
    count, wide = int(regions.max()), int(masks.max()) + 1
    table = np.bincount((regions * wide + masks).ravel(), minlength=(count + 1) * wide)
    shared = table.reshape(count + 1, wide)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    overlap = shared / np.maximum(union, 1)
    if wide == 1:
        return np.zeros(count)
    return np.asarray(overlap[1:, 1:].max(1), np.float64)


def mean_best_overlap(
    grouper: Grouper, dataset: Dataset, size: tuple[int, int], least: int = LEAST_REGION
) -> float:
    """Mean best overlap (mBO) of connected object masks with the regions of the label maps.

    The average over labelled regions of the best IoU that any mask reaches (Pont-Tuset et al. 2017,
    section 6; with object discovery in SlotMIM, Wen et al. 2025). A region is a connected part of a
    class.

    Args:
        size: (height, width) at which the trunk sees the frames.
        least: pixels; smaller regions are not judged.

    Raises:
        InputError: no frame has a region to judge.
    """
    overlaps: list[np.ndarray] = []
    for image, mask in _labelled(dataset):
        masks = connected(groups_of(grouper, image, size))
        overlaps.append(best_overlaps(masks, connected(mask, dataset.ignore_index, least)))
    found = np.concatenate(overlaps) if overlaps else np.zeros(0)
    if not len(found):
        raise InputError(
            f"no frame of {dataset.name} has a label map with a region of {least} pixels; "
            "give a split with masks"
        )
    return float(found.mean())


def _labelled(dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for index in range(len(dataset)):
        frame = dataset.read(index)
        if frame.mask is not None:
            yield frame.image, frame.mask


def object_overlays(
    grouper: SlotMIM | Grouper,
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    strength: float = 0.55,
) -> list[np.ndarray]:
    """Images uint8 [H, W, 3] with the masks of groups in colours over them, outlined.

    A group has the same colour in all images.

    Args:
        grouper: a SlotMIM objective, whose prototypes are shown, or any other grouper.
        size: (height, width) at which the trunk sees the images.
        strength: of the colour, 0 to 1.
    """
    if isinstance(grouper, SlotMIM):
        grouper = PrototypeGroups(grouper)
    maps = [groups_of(grouper, image, size) for image in images]
    present = np.unique(np.concatenate([m.ravel() for m in maps])) if maps else np.zeros(0, int)
    palette = np.array(colours(len(present)), np.uint8).reshape(-1, 3)
    overlays = []
    for image, groups in zip(images, maps, strict=True):
        colour = palette[np.searchsorted(present, groups)]
        shown = cv2.addWeighted(image, 1 - strength, colour, strength, 0)
        edge = np.zeros(groups.shape, bool)
        edge[1:] |= groups[1:] != groups[:-1]
        edge[:, 1:] |= groups[:, 1:] != groups[:, :-1]
        shown[edge] = 255
        overlays.append(shown)
    return overlays
