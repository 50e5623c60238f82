"""One process of several, as torchrun starts it: trains what its argument, a JSON list, says.

Each run is a dict of data, out, method and settings; several share the start of the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from distill.data.images import open_images
from distill.pretraining import pretrain, read_settings
from edge_runtime.terminal import run_app


def main() -> None:
    torch.set_num_threads(1)
    for run in json.loads(sys.argv[1]):
        settings = read_settings(run["method"], None, run["settings"])
        pretrain(open_images([run["data"]]), Path(run["out"]), settings, accelerator="cpu")


if __name__ == "__main__":
    run_app(main)  # type: ignore[arg-type]
