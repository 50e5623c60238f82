"""What is each self-supervised method worth? All of them on CIFAR-10 shards, on one CPU core.

    python benchmarks/methods.py --train 'train-{0000..0002}.tar' --test test-0000.tar

Every method trains from its recipe for small images (distill/recipes/pretrain/small), a process a
seed. Its encoder, and the same trunk untrained, are judged by weighted k-NN (k = 20)
and a linear probe: fitted on the training shards' labels, tested on the test shard. A run's figures
are written as soon as it is done, so that an interrupted benchmark goes on; the table is printed at
the end, and by --table alone from what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from distill.objectives.protocol import objective, objective_names
from distill.pretraining import RECIPES
from edge_runtime.files import atomic_write_text

_LINEAR_KINDS = ("pretext", "masked")
_LEAST = {"knn": 0.08, "linear": 0.04}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", help="shards to train and to fit probes on")
    parser.add_argument("--test", help="shards to judge by")
    parser.add_argument("--methods", nargs="*", default=[], help="default: all with a recipe")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--json", type=Path, default=Path("out/methods.json"))
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE on top of every recipe")
    return parser.parse_intermixed_args()


def judge(encoder: Any, args: argparse.Namespace, size: tuple[int, int], seed: int) -> Any:
    """k-NN and linear accuracy of an encoder."""
    from distill.data.images import open_images
    from distill.evaluation.features import extract
    from distill.evaluation.knn import knn_accuracy
    from distill.evaluation.linear import linear_accuracy

    train, test = (
        extract(encoder, open_images([spec]), size, progress=False)
        for spec in (args.train, args.test)
    )
    sides = train.pooled, train.labels, test.pooled, test.labels
    return {"knn": knn_accuracy(*sides), "linear": linear_accuracy(*sides, seed)}


def one(args: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Trains and judges one method with one seed, in this process."""
    import torch

    from distill.data.images import open_images
    from distill.evaluation.opening import open_encoder
    from distill.pretraining import build_encoder, pretrain, read_settings

    torch.set_num_threads(1)
    recipe = RECIPES / "small" / f"{method}.yaml"
    asked = [*args.settings, f"seed={seed}", "workers=0"]
    settings = read_settings(None, recipe, asked)
    torch.manual_seed(seed)
    before = judge(build_encoder(settings, None), args, settings.size, seed)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        pretrain(open_images([args.train]), Path(folder) / "run", settings, accelerator="cpu")
        seconds = time.process_time() - begun
        after = judge(open_encoder(f"{folder}/run").encoder, args, settings.size, seed)
    about = {"method": method, "seed": seed, "encoder": settings.encoder, "epochs": settings.epochs}
    return {**about, "before": before, "after": after, "cpu_minutes": seconds / 60}


def run_all(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Runs what is missing, a process each, and keeps every result at once."""
    known = [m for m in objective_names() if (RECIPES / "small" / f"{m}.yaml").is_file()]
    done = {(r["method"], r["seed"]) for r in rows}
    shared = ["--train", args.train, "--test", args.test]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for seed in args.seeds:
        for method in args.methods or known:
            if (method, seed) in done:
                continue
            command = [sys.executable, __file__, *shared, "--one", method, str(seed)]
            found = subprocess.run(
                [*command, *args.settings], stdout=subprocess.PIPE, text=True, env=environment
            )
            if found.returncode:
                print(f"{method}, seed {seed}: failed with code {found.returncode}", flush=True)
                continue
            rows.append(json.loads(found.stdout.strip().splitlines()[-1]))
            atomic_write_text(args.json, json.dumps(rows, indent=1))
            print(json.dumps(rows[-1]), flush=True)


def table(rows: list[dict[str, Any]]) -> Table:
    """One row a method, means over seeds, in percent."""
    columns = ("method", "kind", "trunk", "k-NN", "gain", "linear", "gain", "CPU min", "enough")
    shown = Table(*columns)
    for method in sorted({r["method"] for r in rows}):
        runs = [r for r in rows if r["method"] == method]
        kind = objective(method).kind
        gains = {m: np.array([r["after"][m] - r["before"][m] for r in runs]) for m in _LEAST}
        asked = "linear" if kind in _LINEAR_KINDS else "knn"
        cells = [method, kind, runs[0]["encoder"]]
        for measure in ("knn", "linear"):
            after = np.array([r["after"][measure] for r in runs])
            cells += [spread(after), f"{100 * gains[measure].mean():+.1f}"]
        minutes = max(r["cpu_minutes"] for r in runs)
        enough = "yes" if gains[asked].min() >= _LEAST[asked] and minutes <= 6 else "no"
        shown.add_row(*cells, f"{minutes:.1f}", f"{enough} ({len(runs)})")
    return shown


def spread(values: np.ndarray) -> str:
    """Mean and, of several, half the range, in percent."""
    text = f"{100 * values.mean():.1f}"
    return f"{text} ± {50 * np.ptp(values):.1f}" if len(values) > 1 else text


def main() -> None:
    args = parse_arguments()
    if args.one:
        print("\n" + json.dumps(one(args, args.one[0], int(args.one[1]))))
        return
    rows = json.loads(args.json.read_text()) if args.json.is_file() else []
    if not args.table:
        if not (args.train and args.test):
            raise SystemExit("error: give --train and --test, or --table")
        run_all(args, rows)
    Console(width=140).print(table(rows))


if __name__ == "__main__":
    main()
