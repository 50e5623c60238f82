"""Whether adaptation ever makes things worse: returns home, known places, faults, false alarms.

    python benchmarks/adaptation_safety.py my.bundle --data dataset.yaml:val \
        --real dusk=dataset.yaml:train@0001TP_ --strategy align

Suites, each a table of its own (`--suites` picks some):

* returns: home, elsewhere, home, fog, home. Each visit home against never having left; and how a
  second visit elsewhere begins, against the end of the first.
* hostile: black, white, frozen, shuffled, half covered, of changing resolution, flickering; then
  home, against the network as trained.
* alarms: frames of home, again and again with jitter: how often an adapter is promoted.
* detection: how many frames after each shift sets in it is declared.

The frames and their judgement are those of `benchmarks/adaptation.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from adaptation import InMemory, learner_for, open_frames, open_perception
from rich.console import Console
from rich.table import Table

from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.shifts import KINDS, ShiftStream, parse_shifts
from edge_runtime.bundle import identity_adapter, open_bundle
from edge_runtime.evaluation import confusion, miou
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

Images = Iterator[tuple[Frame, np.ndarray | None]]  # frames with their masks
console = Console()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="home: dataset.yaml:SPLIT[@PREFIX]")
    parser.add_argument("--real", help="elsewhere: NAME=dataset.yaml:SPLIT[@PREFIX]")
    parser.add_argument("--strategy", default="align")
    parser.add_argument("--suites", default="returns,hostile,alarms,detection")
    parser.add_argument("--visit", type=int, default=60, help="frames of each visit")
    parser.add_argument("--kinds", help="of the suite detection, comma-separated; all by default")
    parser.add_argument("--frames", type=int, default=1000, help="of the suite alarms")
    parser.add_argument("--network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Judge:
    """Perception with or without a learner, judged visit by visit."""

    def __init__(self, perception: Perception, strategy: str | None, classes: int) -> None:
        perception.adapter = identity_adapter(perception.manifest)
        learner = None if strategy is None else learner_for(perception, strategy)
        self.stream = Adapting(perception, learner)
        self.classes = classes

    def visit(self, frames: Images) -> list[np.ndarray]:
        """One confusion matrix for each frame with a mask."""
        matrices = []
        for frame, mask in frames:
            result = self.stream(frame)
            if mask is not None and result.segmentation is not None:
                matrices.append(confusion(result.segmentation.mask, mask, self.classes))
        return matrices


def frames_of(data: InMemory, shift: str | None = None, count: int | None = None) -> Images:
    """A dataset's frames in order, with a shift drawn over them."""
    drawn = None if shift is None else ShiftStream(parse_shifts(shift))
    for index in range(min(count or len(data), len(data))):
        labelled = data.read(index)
        image = labelled.image if drawn is None else drawn.image(labelled.image, index)
        mask = labelled.mask
        if mask is not None and data.ignore_index is not None:
            mask = np.where(mask == data.ignore_index, 255, mask)
        yield Frame(image, index, data.samples[index].stem), mask


def percent(matrices: list[np.ndarray]) -> float:
    return 100 * miou(np.sum(matrices, axis=0))


def returns(args: argparse.Namespace, perception: Perception, home: InMemory) -> dict:
    """Visits in turn; the same visits as trained."""
    visits: list[tuple[str, Callable[[], Images]]] = [
        ("home", lambda: frames_of(home, None, args.visit)),
        ("fog", lambda: frames_of(home, "fog:0.8", args.visit)),
    ]
    order = [0, 1, 0, 1, 0]
    if args.real:
        name, _, spec = args.real.partition("=")
        elsewhere = open_frames(spec)
        visits.append((name, lambda: frames_of(elsewhere, None, args.visit)))
        order = [0, 2, 0, 2, 0, 1, 0]
    classes = len(home.segmentation_classes or [])
    adapted = Judge(perception, args.strategy, classes)
    seen = [adapted.visit(visits[place][1]()) for place in order]
    plain = Judge(perception, None, classes)
    trained = [plain.visit(visits[place][1]()) for place in order]
    table = Table("visit", "as trained", "adapted", "difference", title="returns, mIoU in percent")
    rows = []
    for place, a, b in zip(order, seen, trained, strict=True):
        rows.append((visits[place][0], percent(b), percent(a), percent(a) - percent(b)))
        table.add_row(rows[-1][0], *(f"{v:.2f}" for v in rows[-1][1:]))
    console.print(table)
    figures: dict = {"visits": rows, "events": adapted.stream.trace.events}
    away = order[1]
    first, second = (seen[i] for i in [i for i, p in enumerate(order) if p == away][:2])
    figures["second_visit"] = settled(first, second, visits[away][1], adapted, args.visit)
    console.print(
        "second visit of {place}: an adapter in use after {frames} frames; frames 6 on {late:.2f}, "
        "the same frames of the first visit {first:.2f}".format(
            place=visits[away][0], **figures["second_visit"]
        )
    )
    return figures


def settled(
    first: list[np.ndarray],
    second: list[np.ndarray],
    frames: Callable[[], Images],
    judge: Judge,
    visit: int,
) -> dict[str, float]:
    """How fast the second visit is as good as the first became."""
    trace = judge.stream.trace
    start = 3 * visit if len(trace.adapted) >= 4 * visit else 0
    later = np.flatnonzero(trace.adapted[start : start + visit])
    return {
        "frames": float(later[0] + 1) if len(later) else float("nan"),
        "late": percent(second[5:]),
        "first": percent(first[5:]),
    }


def hostile_frames(kind: str, home: InMemory, count: int) -> Images:
    """A stream that no learner should learn from."""
    rng = np.random.default_rng(0)
    frames = [frame for frame, _ in frames_of(home, None, count)]
    fog = [frame for frame, _ in frames_of(home, "fog:0.8", count)]
    order = rng.permutation(len(frames))
    for index, frame in enumerate(frames):
        image = frame.image
        if kind in ("black", "white"):
            image = np.full_like(image, 0 if kind == "black" else 255)
        elif kind == "frozen":
            image = frames[0].image
        elif kind == "shuffled":
            flat = frames[order[index]].image.reshape(-1, 3)
            image = rng.permutation(flat).reshape(image.shape)
        elif kind == "half covered":
            image = image.copy()
            image[:, : image.shape[1] // 2] = 0
        elif kind == "resolution":
            scale = rng.uniform(0.15, 1.5)
            image = cv2.resize(fog[index].image, None, fx=scale, fy=scale)
        elif kind == "flickering":
            image = (frames, fog)[index // 3 % 2][index].image
        elif kind == "noise":
            image = rng.integers(0, 256, image.shape, np.uint8)
        yield Frame(image, index, str(index)), None


HOSTILE = (
    "black",
    "white",
    "frozen",
    "shuffled",
    "half covered",
    "resolution",
    "flickering",
    "noise",
)


def hostile(args: argparse.Namespace, perception: Perception, home: InMemory) -> dict:
    classes = len(home.segmentation_classes or [])
    plain = percent(Judge(perception, None, classes).visit(frames_of(home)))
    table = Table("before home", "home", "difference", "events", title="hostile, mIoU in percent")
    rows = {}
    for kind in HOSTILE:
        judge = Judge(perception, args.strategy, classes)
        judge.visit(hostile_frames(kind, home, args.visit))
        after = percent(judge.visit(frames_of(home)))
        events = [e for e in judge.stream.trace.events if not e[1].startswith("fault")]
        rows[kind] = {"home": after, "difference": after - plain, "events": events}
        told = ", ".join(f"{i} {what}" for i, what in events[:5])
        table.add_row(kind, f"{after:.2f}", f"{after - plain:+.2f}", told)
    console.print(table)
    return {"as_trained": plain, "after": rows}


def jittered(home: InMemory, count: int) -> Images:
    """Home again and again: a little more or less light and colour, a view a little moved."""
    rng = np.random.default_rng(0)
    for index in range(count):
        if index % len(home) == 0:
            gain, colour = np.exp(rng.normal(0, 0.05)), np.exp(rng.normal(0, 0.02, 3))
            shift = rng.integers(-12, 13, 2)
        image = home.read(index % len(home)).image
        moved = np.roll(image, shift, (0, 1)) if index >= len(home) else image
        lit = np.clip(moved * (gain * colour), 0, 255).astype(np.uint8)
        yield Frame(image if index < len(home) else lit, index, str(index)), None


def alarms(args: argparse.Namespace, perception: Perception, home: InMemory) -> dict:
    judge = Judge(perception, args.strategy, 1)
    judge.visit(jittered(home, args.frames))
    trace = judge.stream.trace
    figures = {
        "frames": len(trace.drift),
        "threshold": judge.stream.learner.monitor.threshold,  # type: ignore[union-attr]
        "drift_p50_p99_max": np.nanpercentile(trace.drift, [50, 99, 100]).round(4).tolist(),
        "shifts": trace.count("shift"),
        "promotions": trace.count("promoted"),
        "refinements": trace.count("refined"),
    }
    console.print("alarms:", figures)
    return figures


def detection(args: argparse.Namespace, perception: Perception, home: InMemory) -> dict:
    """Frames from the onset of a shift, in the middle of home, to its declaration."""
    onset = min(30, len(home) // 2)
    table = Table("kind", "moderate", "strong", title="frames until a shift is declared")
    found: dict[str, list[int | None]] = {}
    for kind in args.kinds.split(",") if args.kinds else sorted(KINDS):
        found[kind] = []
        for severity in (0.6, 0.8):
            judge = Judge(perception, args.strategy, 1)
            judge.visit((f, None) for f, _ in frames_of(home, f"{kind}:{severity}@{onset}-"))
            events = judge.stream.trace.events
            covered = kind == "occlusion"  # is told as a fault
            declared = [
                i - onset + 1
                for i, what in events
                if what in ("shift", "dirt on the lens") or (covered and what.startswith("fault"))
            ]
            found[kind].append(declared[0] if declared else None)
        table.add_row(kind, *("not" if n is None else str(n) for n in found[kind]))
    console.print(table)
    return found


SUITES = {"returns": returns, "hostile": hostile, "alarms": alarms, "detection": detection}


def main() -> None:
    args = parse_arguments()
    perception = open_perception(open_bundle(args.bundle), args.network, args.threads)
    home = open_frames(args.data)
    figures = {name: SUITES[name](args, perception, home) for name in args.suites.split(",")}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2, default=float))


if __name__ == "__main__":
    main()
