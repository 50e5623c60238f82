"""One row of a benchmark's peer: LightlyTrain's second epoch, images a second.

Run by a Python of its own that has `lightly-train` installed; needs nothing of this project.
Its argument is a JSON object, arguments of `lightly_train.pretrain`. The last line printed is the
figure.
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
    asked = json.loads(sys.argv[1])
    images, batch = asked["data"], asked["batch_size"]
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
        **asked,
        epochs=2,
        num_workers=1,
        accelerator="cpu",
        precision="32-true",
        overwrite=True,
    )
    steps = counted[3] - counted[2]
    if not 0 < steps * batch <= total:
        raise SystemExit(f"error: {steps} steps of {batch} in epoch 2 do not fit {total} images")
    print("\n" + json.dumps(steps * batch / (begins[3] - begins[2])))


if __name__ == "__main__":
    main()
