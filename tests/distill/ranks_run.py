"""One process of several, as torchrun starts it: trains what its argument, a JSON list, says.

Each run is a dict of data, out, method, settings, resume and die_at, a step at which the second
process kills itself; several runs share the start of the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from distill.data.images import open_images
from distill.pretraining import pretrain, read_settings
from distill.training import Trainer
from edge_runtime.terminal import run_app


def die_at(step: int) -> None:
    record = Trainer._record

    def dying(self: Trainer, losses: Any, at: int, *rest: Any) -> None:
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, losses, at, *rest)

    Trainer._record = dying  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    for run in json.loads(sys.argv[1]):
        if run.get("die_at") and os.environ["RANK"] == "1":
            die_at(run["die_at"])
        settings = read_settings(run["method"], None, run["settings"])
        images, out, resume = open_images([run["data"]]), Path(run["out"]), run.get("resume", False)
        pretrain(images, out, settings, resume=resume, accelerator="cpu")


if __name__ == "__main__":
    run_app(main)  # type: ignore[arg-type]
