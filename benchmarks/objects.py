"""Objects found without labels: a SlotMIM run's prototypes beside k-means, one table.

    fieldsight-distill pretrain --method slotmim --data camvid/dataset.yaml --data IMAGES --out RUN
    python benchmarks/objects.py RUN --data camvid/dataset.yaml:val --train camvid/dataset.yaml

* mBO: mean over labelled regions (connected parts of a class, at least 100 pixels) of the best
  overlap that any mask reaches. Masks are connected parts of a group of cells.
* used: groups that are the best one of some pixel, and masks a frame.
* k-means has as many clusters as the run has prototypes, or as many as it uses; on the trunk with
  random weights, as it was before the training, and on the trained one. It is fitted to `--train`.

`--out` gets the frames with the masks of the prototypes in colours over them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from distill.data.views import resize_image
from distill.encoders import Encoder
from distill.evaluation.objective_run import open_objective
from distill.evaluation.objects import (
    ClusterGroups,
    Grouper,
    PrototypeGroups,
    connected,
    groups_of,
    mean_best_overlap,
    object_overlays,
)
from distill.objectives.slotmim import SlotMIM
from edge_runtime.datasets import Dataset, open_data

FITTED = 60  # frames that k-means sees


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of pretrain --method slotmim")
    parser.add_argument("--data", required=True, help="dataset.yaml:SPLIT with masks")
    parser.add_argument("--train", required=True, help="frames that clusters are fitted to")
    parser.add_argument("--size", help="HxW that the trunk sees; the run's by default")
    parser.add_argument("--seeds", type=int, default=1, help="random trunks")
    parser.add_argument("--out", type=Path, help="folder for pictures")
    return parser.parse_args()


def spread(dataset: Dataset, count: int) -> list[np.ndarray]:
    """Evenly chosen frames."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int))
    return [dataset.read(int(i)).image for i in chosen]


def used(
    grouper: Grouper, frames: Sequence[np.ndarray], size: tuple[int, int]
) -> tuple[int, float]:
    """Groups that occur in frames, and connected masks a frame."""
    maps = [groups_of(grouper, frame, size) for frame in frames]
    groups = np.unique(np.concatenate([m.ravel() for m in maps]))
    return len(groups), float(np.mean([connected(m).max() for m in maps]))


def main() -> None:
    arguments = parse_arguments()
    objective, settings = open_objective(arguments.run)
    if not isinstance(objective, SlotMIM):
        raise SystemExit(f"{arguments.run} is a run of {settings.method}, which has no prototypes")
    size = settings.size
    if arguments.size:
        height, width = map(int, arguments.size.split("x"))
        size = (height, width)
    data, train = open_data(arguments.data, "val"), open_data(arguments.train, "train")
    shown = spread(data, 12)
    fitted = [resize_image(frame, size) for frame in spread(train, FITTED)]
    prototypes = PrototypeGroups(objective)
    groups, _ = used(prototypes, shown, size)
    groupers: list[tuple[str, Grouper]] = [("prototypes", prototypes)]
    for count in dict.fromkeys([objective.options.prototypes, groups]):
        name = f"k-means, {count} clusters"
        trained = ClusterGroups.fit(objective.kept(), fitted, count)
        groupers.append((f"{name}, same trunk trained", trained))
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            random = Encoder(objective.encoder.spec)
            cluster = ClusterGroups.fit(random, fitted, count, seed)
            groupers.append((f"{name}, untrained (seed {seed})", cluster))
    table = Table(title=f"{settings.encoder} at {size[0]}x{size[1]}, {len(data)} frames")
    for column in ("groups", "mBO", "used", "masks a frame"):
        table.add_column(column)
    for name, grouper in groupers:
        count, masks = used(grouper, shown, size)
        overlap = mean_best_overlap(grouper, data, size)
        table.add_row(name, f"{overlap:.4f}", str(count), f"{masks:.1f}")
    Console(width=110).print(table)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(object_overlays(prototypes, shown, size)):
            cv2.imwrite(str(arguments.out / f"{i:02d}.jpg"), picture[..., ::-1])
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
