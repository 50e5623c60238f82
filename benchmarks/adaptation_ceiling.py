"""Where the loss goes that `align` does not take back: its delay, its method, or the adapter.

    python benchmarks/adaptation_ceiling.py my.bundle --data dataset.yaml:val \
        --real dusk=dataset.yaml:train@0001TP_

Streams and shares are those of `benchmarks/adaptation.py`. Columns, as share of the loss regained
(mIoU in points for recordings of another domain, which have no unshifted counterpart):

* align: as it runs, gate, guard and delay included.
* once in use: the same, on the frames from its first promotion on alone.
* ungated: alignment from the first frame on, without gate and guard.
* rehearsed: align+rehearsal as it runs, with the options of `--options`.
* once taught: the same, on the frames from the first taught adapter on alone.
* ceiling: one adapter for the whole stream, taught with the labels of that very stream. What no
  method can pass, unless it changes more than the adapter, or changes it from frame to frame.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from adaptation import SEVERITIES, InMemory, learner_for, open_frames, open_perception
from adaptation_safety import frames_of, percent
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.numpy import load_file

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.strategies import create_strategy
from edge_runtime.bundle import identity_adapter, open_bundle
from edge_runtime.evaluation import confusion
from edge_runtime.frames import Frame, Result
from edge_runtime.perception import Perception

KINDS = ("dark", "fog", "cast", "noise", "blur", "contrast")
SHIFTED = Drift(1.0, "shifted", 1)
REHEARSED = 6  # passes over the first frames before the first result counts, as in a trial
IGNORED = 255
console = Console()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="dataset.yaml:SPLIT[@PREFIX]")
    parser.add_argument("--real", action="append", default=[], help="NAME=dataset.yaml:SPLIT[@P]")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--limit", type=int, help="frames of each stream")
    parser.add_argument("--steps", type=int, default=120, help="of teaching with labels")
    parser.add_argument("--options", default="{}", help="JSON: options of align+rehearsal")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@dataclass(frozen=True)
class Stream:
    """The frames and masks of one stream, drawn once."""

    name: str
    frames: list[tuple[Frame, np.ndarray]]
    classes: int

    @classmethod
    def of(cls, name: str, data: InMemory, shift: str | None) -> Stream:
        """The frames of a dataset with a shift drawn over them."""
        frames = [(f, mask) for f, mask in frames_of(data, shift) if mask is not None]
        return cls(name, frames, len(data.segmentation_classes or []))

    def matrices(self, perceive: Any) -> list[np.ndarray]:
        """One confusion matrix a frame."""
        found = []
        for frame, mask in self.frames:
            result = perceive(frame)
            found.append(confusion(result.segmentation.mask, mask, self.classes))
        return found


class Ungated:
    """Perception that alignment corrects from the first frame on."""

    def __init__(self, perception: Perception, first: list[Frame]) -> None:
        self.perception = perception
        self.strategy = create_strategy("align", perception.bundle)
        for index in range(REHEARSED):
            self(first[index % len(first)])

    def __call__(self, frame: Frame) -> Result:
        result = self.perception(frame)
        adapter = self.strategy.observe(frame, result, SHIFTED)
        if adapter is not None:
            self.perception.adapter = adapter
        return result


def decomposed(
    perception: Perception, stream: Stream, steps: int, options: dict[str, Any]
) -> dict[str, Any]:
    """mIoU in percent of every column, with that as trained on the same frames."""
    identity = identity_adapter(perception.manifest)
    perception.adapter = identity
    plain = stream.matrices(perception)
    under, begin = followed(perception, stream, "align", "promoted")
    rehearsed, taught_at = followed(perception, stream, "align+rehearsal", "refined", **options)
    first = [frame for frame, _ in stream.frames[:3]]
    ungated = Ungated(perception, first)
    free = stream.matrices(ungated)
    perception.adapter = taught(perception, stream, perception.adapter, steps)
    best = stream.matrices(perception)
    perception.adapter = identity
    return {
        "promoted": begin,
        "refined": taught_at,
        "plain": percent(plain),
        "align": percent(under),
        "once in use": since(begin, plain, under),
        "rehearsed": percent(rehearsed),
        "once taught": since(taught_at, plain, rehearsed),
        "ungated": percent(free),
        "ceiling": percent(best),
    }


def followed(
    perception: Perception, stream: Stream, strategy: str, event: str, **options: Any
) -> tuple[list[np.ndarray], int | None]:
    """Confusion matrices of a strategy as it runs, and the frame of the first such event."""
    adapting = Adapting(perception, learner_for(perception, strategy, **options))
    found = stream.matrices(adapting)
    perception.adapter = identity_adapter(perception.manifest)
    return found, next((i for i, what in adapting.trace.events if what == event), None)


def since(
    begin: int | None, plain: list[np.ndarray], under: list[np.ndarray]
) -> tuple[float, float] | None:
    """mIoU as trained and adapted from a frame on."""
    return None if begin is None else (percent(plain[begin:]), percent(under[begin:]))


def taught(perception: Perception, stream: Stream, start: np.ndarray, steps: int) -> np.ndarray:
    """An adapter [A] taught with the stream's labels, by Adam on the cross-entropy of the mask."""
    import torch
    import torch.nn.functional as F

    from edge_runtime.adaptation.network import load_student, run

    torch.set_num_threads(1)
    student = load_student(perception.bundle).requires_grad_(False)
    counts = load_file(perception.bundle.file("reference.safetensors"))["segmentation.histogram"]
    weight = torch.from_numpy((counts / counts.sum() + 1e-3) ** -0.5).float()
    images, masks = fitted(perception, stream)
    adapter = torch.from_numpy(start.copy()).requires_grad_(True)
    optimizer = torch.optim.Adam([adapter], lr=0.02)
    rng = np.random.default_rng(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1.1 + math.cos(math.pi * step / steps))
        chosen = rng.integers(len(images), size=4)
        seen = torch.from_numpy(images[chosen].astype(np.float32))
        logits = run(student, seen, adapter).segmentation
        assert logits is not None
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        target = torch.from_numpy(masks[chosen]).long()
        loss = F.cross_entropy(logits, target, weight, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return adapter.detach().numpy().copy()


def fitted(perception: Perception, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [N, H, W, 3] and masks uint8 [N, H/2, W/2] as the network has them."""
    spec = perception.manifest.input
    images, masks = [], []
    for frame, mask in stream.frames:
        image = np.zeros((spec.height, spec.width, 3), np.uint8)
        perception.geometry(frame.image).to_network(frame.image, out=image)
        size = (spec.width // 2, spec.height // 2)
        images.append(image)
        masks.append(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    return np.stack(images), np.stack(masks)


def show(found: dict[str, dict[str, Any]], home: float, home_late: dict[int, float]) -> None:
    columns = ("align", "once in use", "ungated", "rehearsed", "once taught", "ceiling")
    begins = {"once in use": "promoted", "once taught": "refined"}
    table = Table("stream", "as trained", *begins.values(), *columns, title="share regained")
    for name, row in found.items():
        lost = home - row["plain"]
        cells = [f"{row['plain']:.1f}"]
        cells += ["-" if row[b] is None else str(row[b]) for b in begins.values()]
        for column in columns:
            before, after, reach = row["plain"], row[column], lost
            if after is None:
                cells.append("-")
                continue
            if column in begins:
                before, after = after
                reach = home_late[row[begins[column]]] - before
            real = " " not in name
            cells.append(f"{after - before:+.1f}" if real else f"{(after - before) / reach:.2f}")
        table.add_row(name, *cells)
    console.print(table)


def main() -> None:
    args = parse_arguments()
    perception = open_perception(open_bundle(args.bundle), None, 1)
    data = open_frames(args.data, args.limit)
    streams = [
        Stream.of(f"{kind} {grade}", data, f"{kind}:{severity}")
        for kind in args.kinds.split(",")
        for grade, severity in SEVERITIES.items()
    ]
    for given in args.real:
        name, _, spec = given.partition("=")
        streams.append(Stream.of(name, open_frames(spec, args.limit), None))
    home = Stream.of("unshifted", data, None).matrices(perception)
    found: dict[str, dict[str, Any]] = {}
    for stream in track(streams, "streams", console=Console(stderr=True)):
        found[stream.name] = decomposed(perception, stream, args.steps, json.loads(args.options))
    late = {i: percent(home[i:]) for i in range(len(home))}
    show(found, percent(home), late)
    if args.json:
        args.json.write_text(json.dumps({"home": percent(home), "streams": found}, indent=2))


if __name__ == "__main__":
    main()
