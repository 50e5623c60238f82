"""Everything that is known about one encoder, from images with or without classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.images import FileImages, Images
from distill.evaluation.features import Features, drawn, extract, normalised, view_features
from distill.evaluation.knn import knn_accuracy
from distill.evaluation.linear import LinearProbe, fit_linear, held_back
from distill.evaluation.opening import OpenedEncoder
from distill.evaluation.probe import linear_miou, probe_frames
from distill.evaluation.quality import (
    alignment,
    alpha_req,
    collapse,
    lidar,
    rankme,
    spread,
    uniformity,
)
from distill.evaluation.separability import separability
from edge_runtime.errors import InputError

_TEST_SHARE = 0.2
_LEAST_RANK = 8  # below, alpha-ReQ has no line to fit


@dataclass(frozen=True)
class JudgeOptions:
    """How much is looked at.

    Attributes:
        limit: images to fit probes on, at most.
        test_limit: images to judge by, at most.
        view_images, views: images, and views of each, for LiDAR and alignment.
        neighbours: k of k-NN.
        frames: of a labelled segmentation dataset, for the dense probe.
        seed: of every draw.
        progress: show bars.
    """

    limit: int | None = 10_000
    test_limit: int | None = 5_000
    view_images: int = 500
    views: int = 6
    neighbours: int = 20
    frames: int = 60
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        figures: plain values, as ``--json`` writes them.
        train, test: features; ``test_source`` is what ``test.indices`` count in.
        probe: the linear probe, where there are classes.
    """

    figures: dict[str, Any]
    train: Features
    test: Features
    train_source: Images = field(repr=False)
    test_source: Images = field(repr=False)
    probe: LinearProbe | None = None


def judge_encoder(
    opened: OpenedEncoder, data: Images, test: Images | None, options: JudgeOptions
) -> Judgement:
    """Probes, quality and separability of an encoder.

    k-NN and the linear probe are fitted on ``data`` and judged on ``test``, by default a fifth of
    ``data``. What needs no label is taken on the test images, RankMe and alpha-ReQ, which need
    many, on those of ``data``.

    Raises:
        InputError: images cannot be read, or are too few.
    """
    encoder, size, seed = opened.encoder, opened.size, options.seed
    found = extract(encoder, data, size, options.limit, seed, options.progress)
    if test is not None:
        train, judged = (
            found,
            extract(encoder, test, size, options.test_limit, seed, options.progress),
        )
    else:
        train, judged = _divide(found, seed)
    if len(train.pooled) < 2 or len(judged.pooled) < 2:
        raise InputError(
            f"{len(train.pooled)} images to fit on and {len(judged.pooled)} to judge by; give more"
        )
    figures: dict[str, Any] = {
        "encoder": {
            "name": opened.title,
            "method": opened.method,
            "size": list(size),
            "channels": encoder.channels,
        },
        "images": {
            "train": len(train.pooled),
            "test": len(judged.pooled),
            "test_is": "given" if test is not None else "a fifth of data",
            "left_out": len(train.broken) + (len(judged.broken) if test is not None else 0),
        },
    }
    dead = collapse(judged.pooled)
    probe = None
    if train.labelled and judged.labelled:
        probe, figures["labels"] = _with_labels(train, judged, options)
    source = test if test is not None else data
    figures["quality"] = _without_labels(opened, train, judged, source, options, dead)
    dense = _dense(opened, source, options)
    if dense:
        figures["dense"] = dense
        figures["dense"].update(_objects(opened, source, options))
    return Judgement(figures, train, judged, data, source, probe)


def _divide(found: Features, seed: int) -> tuple[Features, Features]:
    """Four fifths to fit on and one to judge by, class by class."""
    aside = held_back(found.labels.numpy(), _TEST_SHARE, seed)
    parts = []
    for mask in (~aside, aside):
        chosen = torch.from_numpy(mask)
        parts.append(
            Features(found.pooled[chosen], found.labels[chosen], found.indices[mask], found.broken)
        )
    return parts[0], parts[1]


def _with_labels(
    train: Features, test: Features, options: JudgeOptions
) -> tuple[LinearProbe, dict[str, Any]]:
    probe = fit_linear(train.pooled, train.labels, options.seed)
    right = probe.accuracy(test.pooled, test.labels)
    k = options.neighbours
    figures = {
        "classes": int(train.labels.max()) + 1,
        "knn_top1": knn_accuracy(train.pooled, train.labels, test.pooled, test.labels, k),
        "knn_k": k,
        "linear_top1": right,
        "linear_error": 1 - right,
        "linear_strength": probe.strength,
        **asdict(separability(test.pooled, test.labels, options.seed)),
    }
    return probe, figures


def _without_labels(
    opened: OpenedEncoder,
    train: Features,
    test: Features,
    source: Images,
    options: JudgeOptions,
    dead: str | None,
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "collapse": dead,
        "rankme": rankme(train.pooled),
        "spread": spread(test.pooled),
        "uniformity": uniformity(test.pooled, options.seed),
    }
    if min(train.pooled.shape[1], len(train.pooled) - 1) >= _LEAST_RANK:
        figures["alpha_req"] = alpha_req(train.pooled)
    if options.view_images >= 3:
        chosen = test.indices[drawn(len(test.indices), options.view_images, options.seed)]
        views = view_features(
            opened.encoder,
            source,
            opened.size,
            chosen,
            options.views,
            options.seed,
            options.progress,
        )
        figures["alignment"] = alignment(views[:, 0], views[:, 1])
        if len(views) >= 3:
            figures["lidar"] = lidar(views)
            figures["lidar_at_most"] = min(len(views) - 1, views.shape[2])
    return figures


def _dense(opened: OpenedEncoder, source: Images, options: JudgeOptions) -> dict[str, Any]:
    """mIoU of a linear probe on dense features, where the source has masks."""
    if not isinstance(source, FileImages) or not source.dataset.segmentation_classes:
        return {}
    frames = probe_frames(source.dataset, opened.size, options.frames)
    if len(frames) < 2:
        return {}

    def dense(image: Tensor) -> Tensor:
        maps: Tensor = opened.encoder(normalised(opened.encoder, image))[0]
        return maps

    return {"linear_miou": linear_miou(dense, frames, source.dataset), "frames": len(frames)}


def _objects(opened: OpenedEncoder, source: Images, options: JudgeOptions) -> dict[str, Any]:
    """Mean best overlap of the masks of prototypes, where the method learns some."""
    if opened.method != "slotmim" or opened.run is None or not isinstance(source, FileImages):
        return {}
    from distill.evaluation.objective_run import open_objective
    from distill.evaluation.objects import PrototypeGroups, mean_best_overlap
    from distill.objectives.slotmim import SlotMIM

    objective, _ = open_objective(opened.run)
    assert isinstance(objective, SlotMIM)
    chosen = drawn(len(source.dataset), options.frames, options.seed)
    part = replace(source.dataset, samples=[source.dataset.samples[i] for i in chosen])
    return {"mean_best_overlap": mean_best_overlap(PrototypeGroups(objective), part, opened.size)}


def spread_over_classes(labels: Tensor, count: int, seed: int = 0) -> np.ndarray:
    """Positions of about ``count`` members, as many of each class as of any other."""
    rng = np.random.default_rng(seed)
    values = labels.numpy()
    queues = [rng.permutation(np.flatnonzero(values == v)).tolist() for v in np.unique(values)]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return np.array(sorted(chosen, key=lambda i: (values[i], i)))
