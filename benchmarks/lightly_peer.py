"""One row of benchmarks/distillation.py: LightlyTrain's distillation, second epoch, images/s.

Run by a Python of its own that has `lightly-train` installed; needs nothing of this project.
Arguments: IMAGES OUT STUDENT BATCH_SIZE SIZE. The last line printed is the figure.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    images, out, student, batch, size = sys.argv[1:]
    import lightly_train
    from pytorch_lightning import Trainer

    begins: list[float] = []
    counted: list[int] = []
    call = Trainer.fit

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        loop = self.fit_loop
        advance_start, advance_end = loop.on_advance_start, loop.on_advance_end

        def start() -> None:
            begins.append(time.perf_counter())
            counted.append(self.global_step)
            advance_start()

        def end() -> None:
            begins.append(time.perf_counter())
            counted.append(self.global_step)
            advance_end()

        loop.on_advance_start, loop.on_advance_end = start, end
        return call(self, *args, **kwargs)

    Trainer.fit = timed
    total = len(list(Path(images).iterdir()))
    lightly_train.pretrain(
        out=out,
        data=images,
        model=f"timm/{student}",
        method="distillation",
        method_args={"teacher": "timm/vit_small_patch16_224"},
        epochs=2,
        batch_size=int(batch),
        num_workers=1,
        accelerator="cpu",
        precision="32-true",
        transform_args={"image_size": (int(size), int(size))},
        overwrite=True,
    )
    steps = counted[3] - counted[2]
    if not 0 < steps * int(batch) <= total:
        raise SystemExit(f"error: {steps} steps of {batch} in epoch 2 do not fit {total} images")
    print("\n" + json.dumps(steps * int(batch) / (begins[3] - begins[2])))


if __name__ == "__main__":
    main()
