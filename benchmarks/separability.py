"""Which figures of an encoder follow its linear probe's error? Rank correlation over checkpoints.

    python benchmarks/separability.py RUN RUN ... --data 'cifar10-train-{0000..0002}.tar' \\
        --test cifar10-test-0000.tar

A RUN is a folder of `fieldsight-distill pretrain`, of any method and trunk, or any encoder that
`fieldsight-distill evaluate` takes, such as `RUN@random`; with `--all` every epoch that a run kept
(`keep_encoders=true`) counts, too. Twelve or more of different quality are wanted.

* error: of the linear probe, fitted on `--data`, judged on `--test`.
* r: Spearman's rank correlation of a figure with the error, with a 95% bootstrap interval over
  checkpoints; tau: Kendall's; p: of no correlation. Runs of one method are not independent, so the
  interval is narrower than it would be over methods.

`--json FILE` keeps the figures of each checkpoint as they are found, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from distill.cli.evaluate_encoder import show_correlations
from distill.data.class_folders import open_classified
from distill.evaluation.judging import JudgeOptions
from distill.evaluation.tracking import FIGURES, checkpoints_of, correlations, judge_all
from edge_runtime.errors import FieldsightError
from edge_runtime.files import atomic_write_text

console = Console(width=150)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", nargs="+", metavar="RUN")
    parser.add_argument("--data", required=True, help="images with classes, to fit probes on")
    parser.add_argument("--test", help="images with classes, to judge by")
    parser.add_argument("--all", action="store_true", help="the epochs that runs kept, too")
    parser.add_argument("--limit", type=int, default=4000, help="images to fit on")
    parser.add_argument("--test-limit", type=int, default=2000)
    parser.add_argument("--view-images", type=int, default=400, help="for LiDAR and alignment")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def figures_of(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Figures by encoder argument; those that --json has already are not found again."""
    options = JudgeOptions(
        limit=arguments.limit,
        test_limit=arguments.test_limit,
        view_images=arguments.view_images,
        views=arguments.views,
        seed=arguments.seed,
        progress=False,
    )
    data = open_classified(arguments.data)
    test = open_classified(arguments.test, "val") if arguments.test else None
    specs = []
    for spec in arguments.encoders:
        kept = arguments.all and (Path(spec) / "encoders").is_dir()
        specs += checkpoints_of(Path(spec)) if kept else [spec]
    asked = [arguments.data, arguments.test, *map(str, vars(options).values())]
    found: dict[str, dict[str, Any]] = {}
    if arguments.json is not None and arguments.json.is_file():
        before = json.loads(arguments.json.read_text())
        if before["asked"] == asked:
            found = {k: v for k, v in before["figures"].items() if k in specs}
    for spec in specs:
        if spec not in found:
            found[spec] = judge_all([spec], data, test, options)[0]
            console.print(f"{spec}: error {found[spec]['labels']['linear_error']:.3f}")
        if arguments.json is not None:
            content = {"asked": asked, "figures": found}
            atomic_write_text(arguments.json, json.dumps(content, indent=2))
    return found


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    found = figures_of(arguments)
    table = Table(title=f"{len(found)} checkpoints")
    for column in ("encoder", "error", "k-NN", *FIGURES):
        table.add_column(column, overflow="fold")
    for spec, figures in sorted(found.items(), key=lambda item: item[1]["labels"]["linear_error"]):
        values = [figures[section].get(key) for section, key in FIGURES.values()]
        labels = figures["labels"]
        shown = [labels["linear_error"], labels["knn_top1"], *values]
        run, _, weights = spec.partition("@")
        name = "/".join(Path(run).parts[-2:]) + (
            f"@{Path(weights).stem.removeprefix('encoder-')}" if weights else ""
        )
        table.add_row(name, *("" if v is None else f"{v:.3g}" for v in shown))
    console.print(table)
    show_correlations(correlations(list(found.values()), arguments.seed))


if __name__ == "__main__":
    try:
        main()
    except FieldsightError as error:
        raise SystemExit(f"error: {error}") from None
