"""Few labels: supervised, with unlabelled images, and with them from a pretrained encoder.

    python benchmarks/semi.py --data path/to/dataset.yaml --encoder runs/distilled --out out/semi

Three arms, a run a seed, with the same labels, settings and optimiser steps.
Runs that are finished are not repeated, so that an interrupted benchmark goes on. Ends with the
paired tests of `fieldsight-distill compare`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from distill.data.images import open_images
from distill.evaluation.per_image import FILE_NAME, write_per_image
from distill.evaluation.recording import judge
from distill.evaluation.running import RunPerception
from distill.finetuning import finetune
from distill.settings import FinetuneSettings, load_settings
from edge_runtime.datasets import Dataset, open_data


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="dataset.yaml with splits train and val")
    parser.add_argument("--encoder", type=Path, required=True, help="run of distill or pretrain")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", default="mobilenetv4_conv_small")
    parser.add_argument("--labels", default="10%")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the tests here")
    parser.add_argument(
        "settings",
        nargs="*",
        default=["epochs=30", "size=[160,224]", "batch_size=8"],
        help="of finetune, for all arms",
    )
    return parser.parse_args()


def train(args: argparse.Namespace, arm: str, seed: int, train_data: Dataset, val: Dataset) -> None:
    """One run, trained and judged, unless it is there already."""
    out = args.out / f"{arm}-{seed}"
    if (out / FILE_NAME).is_file():
        return
    overrides = [*args.settings, f"seed={seed}", "workers=0", "freeze=0", "trunk_lr=1"]
    settings = load_settings(FinetuneSettings, None, overrides)
    start = time.process_time()
    finetune(
        train_data.subset(args.labels, seed),
        args.student,
        out,
        settings,
        ["segmentation"],
        encoder=args.encoder if arm == "ssl-semi" else None,
        resume=True,
        accelerator="cpu",
        unlabelled=open_images([f"{args.data}:train"]) if "semi" in arm else None,
    )
    figures, results = judge(RunPerception(out), val, progress=False)
    write_per_image(out / FILE_NAME, results)
    minutes = (time.process_time() - start) / 60
    print(
        f"{out}: mIoU {figures['segmentation']['miou']:.4f}, {minutes:.1f} CPU minutes", flush=True
    )


def main() -> None:
    args = parse_arguments()
    data, val = open_data(f"{args.data}:train"), open_data(f"{args.data}:val")
    arms = ("supervised", "semi", "ssl-semi")
    for seed in range(args.seeds):
        for arm in arms:
            train(args, arm, seed, data, val)
    groups = [",".join(str(args.out / f"{arm}-{s}") for s in range(args.seeds)) for arm in arms]
    command = [sys.executable, "-m", "distill.cli", "compare", *groups]
    subprocess.run([*command, *(["--json", str(args.json)] if args.json else [])], check=True)


if __name__ == "__main__":
    main()
