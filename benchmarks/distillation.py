"""Images a second in distillation: with cached teacher features, without, and a peer's.

    python benchmarks/distillation.py --data path/to/dataset.yaml:train
    python benchmarks/distillation.py --data ... --peer /path/to/other/.venv/bin/python

Each row is a process of its own, one after the other, and counts the second epoch only: by then
caches are filled and workers warm. All use the same images, teacher (ViT-S/16; random weights, as
only speed is measured), student, batch and size. The peer is LightlyTrain's distillation, run by a
Python that has `lightly-train` installed (AGPL: never install it into this project's environment).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TEACHER = "vit_small_patch16_224"
HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="dataset.yaml:SPLIT or an image folder")
    parser.add_argument("--student", default="mobilenetv4_conv_small")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--peer", type=Path, help="Python that has lightly-train installed")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", choices=["cache", "no-cache"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def second_epoch(args: argparse.Namespace, folder: Path, cached: bool) -> float:
    """Images a second of our second epoch, in this process."""
    from distill.distillation import _Trainee, distil
    from distill.settings import DistillSettings
    from edge_runtime.datasets import load_dataset

    begins: list[float] = []
    begin_epoch = _Trainee.begin_epoch

    def timed(trainee: Any, epoch: int) -> None:
        begins.append(time.perf_counter())
        begin_epoch(trainee, epoch)

    _Trainee.begin_epoch = timed  # type: ignore[method-assign]
    dataset = load_dataset(args.data)
    settings = DistillSettings(
        epochs=3, batch_size=args.batch_size, size=(args.size, args.size), probe_every=100, views=1
    )
    distil(
        [dataset],
        [f"{TEACHER}@{folder / 'teacher.safetensors'}"],
        args.student,
        folder / ("run-cache" if cached else "run"),
        settings,
        cache=folder / "cache" if cached else None,
    )
    images = max(len(dataset.samples) // args.batch_size, 1) * args.batch_size
    return images / (begins[2] - begins[1])


def write_teacher(path: Path) -> None:
    """Random weights for the teacher: its speed does not depend on them."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model(TEACHER, num_classes=0).state_dict(), path)


def link_images(spec: str, folder: Path) -> Path:
    """A folder of links to the images of a dataset, which is what the peer reads."""
    from edge_runtime.datasets import load_dataset

    target = folder / "images"
    target.mkdir()
    for sample in load_dataset(spec).samples:
        (target / sample.image.name).symlink_to(sample.image.resolve())
    return target


def measure(command: list[str]) -> float:
    """Runs one row's process; its last line of output is a JSON number."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with code {done.returncode}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    args = parse_arguments()
    if args.one:
        print("\n" + json.dumps(second_epoch(args, args.folder, args.one == "cache")))
        return
    own = [sys.executable, __file__, "--data", args.data, "--student", args.student]
    own += ["--batch-size", str(args.batch_size), "--size", str(args.size)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_teacher(folder / "teacher.safetensors")
        figures = {
            name: measure([*own, "--folder", str(folder), "--one", name])
            for name in ("no-cache", "cache")
        }
        if args.peer:
            images = link_images(args.data, folder)
            asked = {
                "data": str(images),
                "out": str(folder / "peer"),
                "model": f"timm/{args.student}",
                "method": "distillation",
                "method_args": {"teacher": "timm/vit_small_patch16_224"},
                "batch_size": args.batch_size,
                "transform_args": {"image_size": (args.size, args.size)},
            }
            peer = [str(args.peer), str(HERE / "lightly_peer.py"), json.dumps(asked)]
            figures["LightlyTrain"] = measure(peer)
    table = Table("run", "images/s, epoch 2", "over no cache", "over LightlyTrain")
    for name, value in figures.items():
        lightly = f"{value / figures['LightlyTrain']:.2f}" if args.peer else "not run"
        table.add_row(name, f"{value:.1f}", f"{value / figures['no-cache']:.2f}", lightly)
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
