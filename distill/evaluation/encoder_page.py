"""One self-contained page about an encoder: figures, map of features, neighbours, dense maps."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.images import Images
from distill.data.shards import ShardImages
from distill.data.views import resize_image
from distill.encoders import Encoder
from distill.evaluation import page
from distill.evaluation.features import dense_features, drawn
from distill.evaluation.judging import Judgement, spread_over_classes
from distill.evaluation.opening import OpenedEncoder
from edge_runtime.terminal import flat

_POINTS = 1200  # of the map
_PERPLEXITY = 30
_QUERIES, _NEIGHBOURS = 8, 6
_DENSE = 8  # pictures
_LEAST_CELLS = 8  # of a dense map's shorter side
_CURVES = 8


def encoder_page(opened: OpenedEncoder, judged: Judgement, seed: int = 0) -> str:
    """The page as HTML.

    Args:
        opened: the encoder.
        judged: what was found about it.
        seed: of what is drawn.
    """
    names = class_names(judged.test_source)
    parts = [page.facts(flat(judged.figures))]
    if opened.run is not None:
        parts += _curves(opened.run)
    parts += [_map(judged, names, seed), _neighbours(opened, judged, names, seed)]
    parts += [_dense(opened, judged, seed), _objects(opened, judged, seed)]
    return page.document(f"Encoder {opened.title}", [p for p in parts if p])


def class_names(source: Images) -> dict[int, str]:
    """Names of classes by number: of folders, or of a classes.json beside shards, if any."""
    known = getattr(source, "classes", None)
    if isinstance(source, ShardImages):
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((source.paths[0].parent / "classes.json").read_text())
    named = isinstance(known, list) and all(isinstance(name, str) for name in known)
    return dict(enumerate(known)) if known and named else {}


def _name(names: dict[int, str], label: int) -> str:
    return names.get(label, f"class {label}") if label >= 0 else ""


def embed(features: Tensor, seed: int = 0) -> np.ndarray:
    """Features [N, D] on the plane, [N, 2], by t-SNE (van der Maaten & Hinton 2008), cosine.

    Scikit-learn's, from the first principal components on.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = F.normalize(features - features.mean(0), dim=1).numpy()
    count = min(50, x.shape[1], len(x) - 1)
    reduced = PCA(count, random_state=seed).fit_transform(x) if count >= 2 else x
    perplexity = min(_PERPLEXITY, (len(x) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    placed: np.ndarray = model.fit_transform(reduced)
    return placed


def _map(judged: Judgement, names: dict[int, str], seed: int) -> str:
    test = judged.test
    if len(test.pooled) < 10 or judged.figures["quality"]["collapse"]:
        return ""
    chosen = drawn(len(test.pooled), _POINTS, seed)
    labels = test.labels.numpy()[chosen]
    known = {int(v): _name(names, int(v)) for v in np.unique(labels) if v >= 0}
    drawing = page.scatter(embed(test.pooled[chosen], seed), labels, known)
    note = (
        f"t-SNE of {len(chosen)} test images. Neighbours on the map are neighbours in feature "
        "space; distances between groups and their sizes mean nothing."
    )
    return page.section("Map of the features", note, drawing)


def _neighbours(opened: OpenedEncoder, judged: Judgement, names: dict[int, str], seed: int) -> str:
    train, test = judged.train, judged.test
    queries = spread_over_classes(test.labels, _QUERIES, seed)
    bank = F.normalize(train.pooled, dim=1)
    similar = F.normalize(test.pooled[queries], dim=1) @ bank.T
    values, places = similar.topk(min(_NEIGHBOURS, len(bank)), dim=1)
    cells = []
    for row, query in enumerate(queries):
        label = int(test.labels[query])
        shown = judged.test_source.read(int(test.indices[query]))
        cells.append((page.picture(shown, title="query"), f"{_name(names, label)} (query)"))
        for value, place in zip(values[row].tolist(), places[row].tolist(), strict=True):
            other = int(train.labels[place])
            kind = "" if label < 0 else "same" if other == label else "other"
            found = judged.train_source.read(int(train.indices[place]))
            cells.append((page.picture(found, kind), f"{_name(names, other)} {value:.2f}"))
    note = "Test images and their nearest training images by cosine; framed green: same class."
    return page.section("Nearest neighbours", note, page.grid(cells, places.shape[1] + 1))


def dense_size(encoder: Encoder, size: tuple[int, int]) -> tuple[int, int]:
    """A size, a whole multiple of ``size``, at which the dense map has 8 cells or more."""
    cells = max(min(size) // encoder.stride, 1)
    factor = math.ceil(_LEAST_CELLS / cells)
    return size[0] * factor, size[1] * factor


def principal_colours(maps: Tensor) -> np.ndarray:
    """First three principal components of dense features as colours.

    Args:
        maps: [N, C, h, w], of several images, whose components are shared: like things have like
            colours in all of them.

    Returns:
        uint8 [N, h, w, 3].
    """
    cells = maps.permute(0, 2, 3, 1).flatten(0, 2).double()
    centred = cells - cells.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    directions = vectors[:, -3:].flip(1)
    # The sign of a component is free; fixed, so that two pages can be compared.
    directions = torch.where(directions.sum(0) < 0, -directions, directions)
    values = (centred @ directions).float()
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    scaled = ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    shape = (maps.shape[0], *maps.shape[2:], values.shape[1])
    image = (scaled * 255).round().byte().view(shape).numpy()
    return np.pad(image, [(0, 0)] * 3 + [(0, 3 - shape[3])])


def _dense(opened: OpenedEncoder, judged: Judgement, seed: int) -> str:
    test = judged.test
    chosen = test.indices[spread_over_classes(test.labels, _DENSE, seed)]
    size = dense_size(opened.encoder, opened.size)
    images = [resize_image(judged.test_source.read(int(i)), size) for i in chosen]
    coloured = principal_colours(dense_features(opened.encoder, images))
    cells: list[tuple[str, str]] = []
    for image, colour in zip(images, coloured, strict=True):
        factor = max(1, size[1] // colour.shape[1])
        large = np.repeat(np.repeat(colour, factor, 0), factor, 1)
        cells += [(page.picture(image), ""), (page.picture(large), "")]
    times = size[0] // opened.size[0]
    note = (
        f"Dense features at {size[0]}x{size[1]}"
        + (f", {times} times the size it was trained at" if times > 1 else "")
        + "; first three principal components over all pictures as red, green and blue."
    )
    return page.section("Dense features", note, page.grid(cells, 8))


def _objects(opened: OpenedEncoder, judged: Judgement, seed: int) -> str:
    """Masks of the prototypes over pictures, where the method learns some."""
    if opened.method != "slotmim" or opened.run is None:
        return ""
    from distill.evaluation.objective_run import open_objective
    from distill.evaluation.objects import PrototypeGroups, object_overlays
    from distill.objectives.slotmim import SlotMIM

    objective, _ = open_objective(opened.run)
    assert isinstance(objective, SlotMIM)
    test = judged.test
    chosen = test.indices[spread_over_classes(test.labels, _DENSE, seed)]
    images = [judged.test_source.read(int(i)) for i in chosen]
    size = dense_size(opened.encoder, opened.size)
    overlays = object_overlays(PrototypeGroups(objective), images, size)
    cells = [
        cell
        for image, overlay in zip(images, overlays, strict=True)
        for cell in ((page.picture(image), ""), (page.picture(overlay), ""))
    ]
    note = "Each pixel's best prototype in its colour, the same in all pictures; outlined in white."
    return page.section("Objects by prototype", note, page.grid(cells, 4))


def read_metrics(run: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each column of a run's metrics.csv that holds numbers."""
    path = run / "metrics.csv"
    columns: dict[str, tuple[list[float], list[float]]] = {}
    if not path.is_file():
        return columns
    with path.open(newline="", errors="replace") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                values = [_number(row.get("step")), _number(text)]
                if name and name not in ("step", "epoch") and all(map(math.isfinite, values)):
                    steps, found = columns.setdefault(name, ([], []))
                    steps.append(values[0])
                    found.append(values[1])
    return columns


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _curves(run: Path) -> list[str]:
    columns = read_metrics(run)
    shown = [page.curve(name, *columns[name]) for name in sorted(columns)]
    shown = [s for s in shown if s][:_CURVES]
    if not shown:
        return []
    return [page.section("Curves of the run", "By step, from metrics.csv.", "".join(shown))]
