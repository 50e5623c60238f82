"""What adaptation costs beside perception: time of each frame, its tail while refining, memory.

    python benchmarks/adaptation_cost.py my.bundle --data dataset.yaml:val
    python benchmarks/adaptation_cost.py my.bundle --data dataset.yaml:val --parts memory

Parts, each a table of its own (`--parts` picks some):

* learner: what `align` adds to the whole perception call, at home and away: by adapter and
  statistics in the network, against one without them, and by the learner, on the median and on the
  mean frame. Rounds of each alternate, and are compared one by one: median and quartiles over the
  rounds. A first round, in which the adapter is found, is left out; what finding it took is told
  apart, in calls. CPU time on one thread, so that other programs of the machine do not count.
* tail: time of perception alone while `align+ssl` learns in a process of its own, against the
  same while that process has nothing to do, in alternating rounds at `--rate` frames a second.
* memory: most resident memory of a process that runs perception and a strategy on `--frames`
  frames, beside one without; a worker's own is added.

Pin it to one core (`taskset -c 0`) to make perception and refinement share it: the hardest case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from adaptation import learner_for, open_frames
from pipeline import without_adapter
from rich.console import Console
from rich.table import Table

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.replay import AGAIN, Adapting
from edge_runtime.adaptation.shifts import ShiftStream, parse_shifts
from edge_runtime.adaptation.strategies import create_strategy, strategy_names
from edge_runtime.bundle import Bundle, identity_adapter, open_bundle
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.frames import Frame
from edge_runtime.manifest import TensorSpec
from edge_runtime.perception import Perception

SHIFT = "fog:0.6"
console = Console()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="dataset.yaml:SPLIT[@PREFIX]")
    parser.add_argument("--parts", default="learner,tail,memory")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--every", type=int, default=4, help="see `Learner`; of the part learner")
    parser.add_argument("--rate", type=float, default=10, help="frames a second of the part tail")
    parser.add_argument("--duty", type=float, default=0.2, help="of the process that refines")
    parser.add_argument("--strategies", help="of the part memory; all by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one strategy's memory, in a child
    return parser.parse_args()


def images_of(args: argparse.Namespace, shift: str | None) -> list[Frame]:
    """The first frames of the data, with a shift drawn over them."""
    data = open_frames(args.data, args.frames)
    drawn = None if shift is None else ShiftStream(parse_shifts(shift))
    images = [data.read(i).image for i in range(len(data))]
    shown = [im if drawn is None else drawn.image(im, i) for i, im in enumerate(images)]
    return [Frame(image, index, str(index)) for index, image in enumerate(shown)]


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of CPU time."""
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


class Bare(OnnxRuntimeEngine):
    """A network without adapter and statistics, for a perception that expects one with both."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        path = folder / "bare.onnx"
        without_adapter(bundle, path)
        super().__init__(path, threads=1)
        self.inputs = {**self.inputs, "adapter": _vector(bundle, "adapter")}
        self.outputs = {**self.outputs, "statistics": _vector(bundle, "statistics")}
        self._unused = identity_adapter(bundle.manifest)

    def input_buffer(self, name: str) -> np.ndarray:
        return self._unused if name == "adapter" else super().input_buffer(name)


def _vector(bundle: Bundle, name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=[bundle.manifest.adapter_size])


def adapting(perception: Perception, learner: Learner) -> Callable[[Frame], None]:
    """Perception with a learner as on the robot; `Adapting` keeps a record for a report besides."""
    perception.adapter = learner.adapter

    def call(frame: Frame) -> None:
        frame = learner.prepare(frame)
        decision = learner.observe(frame, perception(frame))
        if decision.changed:
            perception.adapter = decision.adapter
            if decision.event in AGAIN:
                perception(frame)

    return call


def learner(args: argparse.Namespace) -> dict[str, Any]:
    """Added time at home and away, over alternating rounds."""
    bundle = open_bundle(args.bundle)
    perception = Perception(bundle, "onnxruntime", "fp32", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        bare = Perception(bundle, engine=Bare(bundle, Path(folder)))
    adds = ("network", "learner", "both", "quartiles", "both, mean", "quartiles")
    table = Table("where", "without ms", *adds, "found in calls", title="`align` adds")
    figures: dict[str, Any] = {}
    for where, shift in (("home", None), ("away", SHIFT)):
        frames = images_of(args, shift)
        stream = adapting(perception, learner_for(perception, "align", every=args.every))
        calls = {"bare": bare, "alone": perception, "both": stream}
        taken: dict[str, list[list[float]]] = {name: [] for name in calls}
        for turn in range(args.rounds + 1):
            for name in np.roll(list(calls), turn):  # whatever a program leaves behind evens out
                taken[name].append([timed(lambda f=frame, c=calls[name]: c(f)) for frame in frames])
        first = float(np.sum(taken["both"][0]))
        later = {name: np.array(rounds[1:]) for name, rounds in taken.items()}
        median = {name: np.median(times, axis=1) for name, times in later.items()}
        mean = {name: times.mean(axis=1) for name, times in later.items()}
        # Round by round, so that a machine that is slower for a while is so on both sides.
        row = {
            "network": mean["alone"] / mean["bare"] - 1,
            "learner": (mean["both"] - mean["alone"]) / mean["bare"],
            "both": median["both"] / median["bare"] - 1,
            "both_mean": mean["both"] / mean["bare"] - 1,
        }
        without = float(np.median(mean["bare"]))
        usual = float(np.median(mean["both"])) * len(frames)
        found = (first - usual) / float(np.median(mean["alone"]))
        quartiles = {name: np.percentile(added, [25, 50, 75]) for name, added in row.items()}
        kept = {name: list(map(float, values)) for name, values in quartiles.items()}
        figures[where] = {"without_ms": without, "calls_to_find": found, **kept}
        told = [f"{quartiles[name][1]:.1%}" for name in ("network", "learner")]
        for name in ("both", "both_mean"):
            low, middle, high = quartiles[name]
            told += [f"{middle:.1%}", f"{low:.1%} to {high:.1%}"]
        table.add_row(where, f"{without:.2f}", *told, f"{found:.1f}")
        perception.adapter = identity_adapter(perception.manifest)
    console.print(table)
    return figures


def tail(args: argparse.Namespace) -> dict[str, Any]:
    """Percentiles of perception while another process learns, and while it does not."""
    perception = Perception(open_bundle(args.bundle), "onnxruntime", "fp32", threads=1)
    frames = images_of(args, SHIFT)
    strategy: Any = create_strategy("align+ssl", perception.bundle, apart=True, duty=args.duty)
    shifted = Drift(1.0, "shifted", 1)
    while strategy.learning.worker.health.state == "starting":
        time.sleep(0.2)
    taken: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * args.rounds):
        learning = bool(turn % 2)
        for frame in frames:
            due = time.perf_counter() + 1 / args.rate
            start = time.perf_counter()
            result = perception(frame)
            taken[learning].append(1e3 * (time.perf_counter() - start))
            if learning:
                strategy.observe(frame, result, shifted)
            time.sleep(max(0.0, due - time.perf_counter()))
        while strategy.learning.worker.health.state == "working":
            time.sleep(0.1)
    steps = strategy.learning.worker.health.learnt
    strategy.close()
    rows = {name: np.percentile(taken[name], [50, 90, 99]) for name in taken}
    table = Table("", "p50 ms", "p90", "p99", title=f"tail, {steps} steps learnt")
    table.add_row("nothing to learn", *(f"{v:.2f}" for v in rows[False]))
    table.add_row("learning", *(f"{v:.2f}" for v in rows[True]))
    ratio = rows[True] / rows[False]
    table.add_row("ratio", *(f"{v:.2f}" for v in ratio))
    console.print(table)
    return {"steps": steps, "frames": len(taken[True]), "ratio_p50_p90_p99": ratio.tolist()}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory by strategy, each in a process of its own."""
    names = (
        args.strategies.split(",") if args.strategies else [*strategy_names(), "align+ssl apart"]
    )
    table = Table("strategy", "MB", "above none", title="memory")
    found: dict[str, float] = {}
    for name in ["none", *(n for n in names if n != "none")]:
        words = [sys.executable, __file__, str(args.bundle), "--data", args.data]
        words += ["--frames", str(args.frames), "--measure", name]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        table.add_row(name, f"{found[name]:.0f}", f"{found[name] - found['none']:+.0f}")
    console.print(table)
    return found


def measure(args: argparse.Namespace) -> None:
    """Run one strategy and print its process's peak memory in MB, a worker's included."""
    name, _, apart = args.measure.partition(" ")
    perception = Perception(open_bundle(args.bundle), "onnxruntime", "fp32", threads=1)
    options = {"apart": True, "duty": 1.0} if apart else {}
    made = None if name == "none" else learner_for(perception, name, **options)
    worker = getattr(made.strategy, "worker", None) if made is not None else None
    while worker is not None and worker.health.state == "starting":
        time.sleep(0.2)
    stream = Adapting(perception, made)
    for frame in images_of(args, SHIFT):
        stream(frame)
    while worker is not None and worker.health.state == "working":
        time.sleep(0.2)
    total = peak_mb(os.getpid())
    if worker is not None and (pid := worker.health.pid) is not None:
        total += peak_mb(pid)
        worker.close()
    print(total)


def peak_mb(pid: int) -> float:
    """Most memory that a process ever had resident, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    return float("nan")


PARTS = {"learner": learner, "tail": tail, "memory": memory}


def main() -> None:
    args = parse_arguments()
    if args.measure:
        measure(args)
        return
    figures = {name: PARTS[name](args) for name in args.parts.split(",")}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
