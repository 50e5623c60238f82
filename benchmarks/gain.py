"""What does distillation buy? Pairs of bundles that differ in nothing else, judged image by image.

    python benchmarks/gain.py --data path/to/dataset.yaml:val \
        --without scratch0.bundle scratch1.bundle --with distilled0.bundle distilled1.bundle

One bundle a seed on either side, in the same order.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from distill.evaluation.recording import judge
from distill.evaluation.scores import Scores
from distill.evaluation.significance import compare
from edge_runtime.datasets import open_data
from edge_runtime.perception import Perception


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--without", nargs="+", type=Path, required=True)
    parser.add_argument("--with", nargs="+", type=Path, required=True, dest="distilled")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    data = open_data(args.data, "val")
    figures: dict[str, list[dict[str, Any]]] = {}
    scores: dict[str, list[Scores]] = {}
    for side, bundles in (("without", args.without), ("with", args.distilled)):
        judged = [judge(Perception(b), data, progress=False) for b in bundles]
        figures[side] = [found for found, _ in judged]
        scores[side] = [results.scores("miou") for _, results in judged]
    table = Table(title=f"{data.name}, {len(data.samples)} frames, {len(args.without)} seeds")
    for column in ("", "mIoU by seed", "mean", "sd", "AP@.5 mean"):
        table.add_column(column)
    for side, runs in figures.items():
        values = [r["segmentation"]["miou"] for r in runs]
        boxes = [r["detection"]["map_50"] for r in runs if "detection" in r]
        table.add_row(
            side,
            ", ".join(f"{v:.4f}" for v in values),
            f"{np.mean(values):.4f}",
            f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "",
            f"{np.mean(boxes):.4f}" if boxes else "",
        )
    found = compare(scores["without"], scores["with"])
    images = found.images
    console = Console()
    console.print(table)
    console.print(
        f"gain {100 * found.gain:.2f} points of mIoU, 95% interval {100 * images.low:.2f} to "
        f"{100 * images.high:.2f}, paired bootstrap over images p = {images.p_bootstrap:.4f}, "
        f"exchange of images p = {images.p_permutation:.4f} (both two-sided)"
    )
    if args.json:
        tests = {"gain": found.gain, "p": images.p_bootstrap, "tests": asdict(found)}
        args.json.write_text(json.dumps({**figures, **tests}, indent=2))


if __name__ == "__main__":
    main()
