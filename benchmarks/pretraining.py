"""Images a second and peak memory of self-supervised pretraining, beside LightlyTrain's.

    python benchmarks/pretraining.py --data path/to/dataset.yaml:train
    python benchmarks/pretraining.py --data ... --peer /path/to/other/.venv/bin/python

Each row is a process of its own, one after the other. Images a second are those of the second
epoch, when workers are warm; memory is the largest sum over the process and its workers
(proportional set size). Both sides have the same images, trunk, batch, crops, heads and number of
workers. The peer is run by a Python that has `lightly-train` installed (AGPL: never install it into
this project's environment).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
# The trunk, our options and the peer's, whose defaults these are.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "simclr": ("resnet18", {"hidden": 2048, "projection": 128}, {}),
    "dino": (
        "vit_tiny_patch16_224",
        {
            "prototypes": 1024,
            "min_scale": 0.14,
            "local_views": 6,
            "local_scale": [0.05, 0.14],
            "local_size": 0.43,
        },
        {"output_dim": 1024},
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="dataset.yaml:SPLIT or an image folder")
    parser.add_argument("--methods", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=1, help="repeat in turns; the median counts")
    parser.add_argument("--peer", type=Path, help="Python that has lightly-train installed")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def second_epoch(args: argparse.Namespace) -> float:
    """Images a second of our second epoch, in this process."""
    from distill import pretraining
    from distill.data.images import open_images
    from distill.settings import PretrainSettings

    begins: list[float] = []
    begin_epoch = pretraining._Trainee.begin_epoch

    def timed(trainee: Any, epoch: int) -> None:
        begins.append(time.perf_counter())
        begin_epoch(trainee, epoch)

    pretraining._Trainee.begin_epoch = timed  # type: ignore[method-assign]
    trunk, options, _ = CASES[args.one]
    settings = PretrainSettings(
        method=args.one,
        encoder=trunk,
        options=options,
        epochs=3,
        batch_size=args.batch_size,
        size=(args.size, args.size),
        workers=1,
        held_back=2,
        probe_every=100,
        checkpoint_every=10**6,
    )
    images = open_images([args.data])
    pretraining.pretrain(images, args.folder / f"run-{args.one}", settings, accelerator="cpu")
    return (len(images) - 2) // args.batch_size * args.batch_size / (begins[2] - begins[1])


def link_images(spec: str, folder: Path) -> Path:
    """A folder of links to the images of a dataset, which is what the peer reads."""
    from edge_runtime.datasets import open_data

    target = folder / "images"
    target.mkdir()
    for sample in open_data(spec).samples:
        (target / sample.image.name).symlink_to(sample.image.resolve())
    return target


def memory(process: int) -> int:
    """Proportional set size in KiB of a process and all below it; 0 once it is gone."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
    return int(found.group(1) if found else 0) + sum(memory(int(child)) for child in below)


def measure(command: list[str]) -> dict[str, float]:
    """Runs one row's process; its last line of output is a JSON number."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(1.0)
        if process.returncode:
            raise SystemExit(f"error: {' '.join(command)} ended with code {process.returncode}")
        said.seek(0)
        rate = float(json.loads(said.read().strip().splitlines()[-1]))
    return {"images_per_second": rate, "peak_mib": peak / 1024}


def commands(args: argparse.Namespace, method: str, folder: Path) -> dict[str, list[str]]:
    """What runs each row of a method."""
    own = [sys.executable, __file__, "--data", args.data, "--folder", str(folder)]
    own += ["--batch-size", str(args.batch_size), "--size", str(args.size), "--one", method]
    if not args.peer:
        return {"ours": own}
    trunk, _, method_args = CASES[method]
    transform: dict[str, Any] = {"image_size": (args.size, args.size)}
    if method == "dino":
        local = round(args.size * 96 / 224 / 16) * 16  # as our local views, of whole patches
        transform["local_view"] = {"view_size": (local, local)}
    asked = {
        "data": str(folder / "images"),
        "out": str(folder / f"peer-{method}"),
        "model": f"timm/{trunk}",
        "method": method,
        "method_args": method_args,
        "batch_size": args.batch_size,
        "transform_args": transform,
    }
    peer = [str(args.peer), str(HERE / "lightly_peer.py"), json.dumps(asked)]
    return {"ours": own, "LightlyTrain": peer}


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The round of median speed."""
    return sorted(rounds, key=lambda f: f["images_per_second"])[len(rounds) // 2]


def table(figures: dict[str, dict[str, dict[str, float]]]) -> Table:
    """One row a method and program."""
    shown = Table("method", "trunk", "run", "images/s, epoch 2", "peak MiB", "over LightlyTrain")
    for method, rows in figures.items():
        peer = rows.get("LightlyTrain", {}).get("images_per_second")
        for name, found in rows.items():
            rate, peak = found["images_per_second"], f"{found['peak_mib']:.0f}"
            over = f"{rate / peer:.2f}" if peer else "not run"
            shown.add_row(method, CASES[method][0], name, f"{rate:.1f}", peak, over)
    return shown


def main() -> None:
    args = parse_arguments()
    if args.one:
        print("\n" + json.dumps(second_epoch(args)))
        return
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        link_images(args.data, folder)
        for method in args.methods:
            rows = commands(args, method, folder)
            rounds = [{n: measure(c) for n, c in rows.items()} for _ in range(args.rounds)]
            figures[method] = {name: middle([r[name] for r in rounds]) for name in rows}
    Console(width=110).print(table(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
