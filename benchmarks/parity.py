"""Do torch, ONNX Runtime, `evaluate` and the files of `predict` say the same? One table.

    python benchmarks/parity.py RUN NAME.bundle --data path/to/dataset.yaml:val

RUN is the folder of `fieldsight-distill finetune` that the bundle was exported from.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from distill.data.views import resize_image
from distill.graph import box_difference, identity, open_session, write_onnx
from distill.runs import load_student
from edge_runtime.bundle import open_bundle
from edge_runtime.datasets import Dataset, open_data
from edge_runtime.evaluation import average_precision, class_iou, confusion, evaluate
from edge_runtime.images import read_mask
from edge_runtime.perception import Perception


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def against_torch(run: Path, bundle_path: Path, data: Dataset) -> dict[str, float]:
    """Share of equal mask pixels and the largest box difference over all frames."""
    import torch

    bundle = open_bundle(bundle_path)
    size = (bundle.manifest.input.height, bundle.manifest.input.width)
    student, _ = load_student(run)
    with tempfile.TemporaryDirectory() as scratch:
        network = write_onnx(student, size, Path(scratch) / "model.onnx")
    session = open_session(bundle.file("model.onnx"))
    adapter, names = identity(student), network.output_names
    equal, worst = [], 0.0
    for i in range(len(data.samples)):
        image = resize_image(data.read(i).image, size)[None]
        with torch.no_grad():
            torch_out = network(torch.from_numpy(image), adapter)
        a = dict(zip(names, (o.numpy() for o in torch_out), strict=True))
        found = session.run(names, {"image": image, "adapter": adapter.numpy()})
        b = dict(zip(names, found, strict=True))
        if "mask" in a:
            equal.append(float((a["mask"] == b["mask"]).mean()))
        if "boxes" in a:
            worst = max(worst, box_difference(a, b))
    return {"mask_equal": float(np.mean(equal)) if equal else 1.0, "box_px": worst}


def from_files(bundle: Path, spec: str, data: Dataset) -> dict[str, float]:
    """Metrics recomputed from what `predict` wrote."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "predictions"
        command = [sys.executable, "-m", "edge_runtime.cli", "predict", str(bundle), spec]
        command += ["--out", str(out), "--score-threshold", "0", "--no-overlays"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if data.segmentation_classes:
            count = len(data.segmentation_classes)
            total = np.zeros((count, count), np.int64)
            for i, sample in enumerate(data.samples):
                mask = data.read(i).mask
                if mask is not None:
                    found = read_mask(out / "masks" / f"{sample.stem}.png")
                    total += confusion(found, mask, count, data.ignore_index)
            figures["miou"] = float(np.nanmean(class_iou(total, data.ignore_index)))
        if data.coco is not None:
            results = json.loads((out / "detections.coco.json").read_text())
            figures |= {k: average_precision(data.coco, results)[k] for k in ("map", "map_50")}
    return figures


def main() -> None:
    args = parse_arguments()
    data = open_data(args.data, "val")
    parity = against_torch(args.run, args.bundle, data)
    whole = evaluate(Perception(args.bundle), data)
    files = from_files(args.bundle, args.data, data)
    table = Table(title=f"{args.bundle.name}, {len(data.samples)} frames")
    for column in ("figure", "torch / evaluate", "ONNX Runtime / predict's files", "difference"):
        table.add_column(column)
    table.add_row("mask pixels equal", "", f"{parity['mask_equal']:.4%}", "")
    table.add_row("largest box difference, px", "", f"{parity['box_px']:.4f}", "")
    flat = {**whole.get("segmentation", {}), **whole.get("detection", {})}
    for name, value in files.items():
        table.add_row(name, f"{flat[name]:.6f}", f"{value:.6f}", f"{abs(flat[name] - value):.1e}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({**parity, "evaluate": whole, "files": files}, indent=2))


if __name__ == "__main__":
    main()
