"""What adaptation is worth: every strategy on every stream, one table, one run.

    python benchmarks/adaptation.py my.bundle --data dataset.yaml:val --out out/adaptation
    python benchmarks/adaptation.py my.bundle --data dataset.yaml:val \
        --real dusk=dataset.yaml:train@0001TP_ --strategies none,input,align --seeds 3

Streams are the frames of `--data` in their order, batch 1: as they are, and with each kind of shift
drawn over them at a moderate and a strong severity; `--real` adds recordings of another domain
(`NAME=DATASET[@PREFIX]`, the frames whose name begins so). Judged as `fieldsight-run adapt` does.

* regained: share of the loss (unshifted minus shifted, as trained) that a strategy takes back,
  over dark, fog, cast and noise at both severities.
* worst: most that it loses on any stream, against the network as trained.
* cost: what the learner adds to the whole perception call, on the mean frame. "steady" is over the
  later half, "all" over all, with the forward passes of rehearsals and judgements.

Results are kept in `--out`/runs.jsonl and not run again: interrupt and go on, or divide the work by
`--strategies`, `--streams` and `--seeds`. `--network FILE` runs another ONNX file of the bundle,
such as model.int8.onnx, computed as it is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from edge_runtime.adaptation.guard import Guard
from edge_runtime.adaptation.known_places import known_places
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.memory import PlaceMemory
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.replay import Adapting, judged
from edge_runtime.adaptation.shifts import ShiftStream, parse_shifts
from edge_runtime.adaptation.strategies import strategy_names
from edge_runtime.adaptation.trial import probe_of
from edge_runtime.bundle import Bundle, identity_adapter, open_bundle
from edge_runtime.datasets import Dataset, LabelledFrame, load_dataset
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.perception import Perception

SEVERITIES = {"moderate": 0.6, "strong": 0.8}
COUNTED = ("dark", "fog", "cast", "noise")  # kinds whose regained share is averaged
KINDS = (*COUNTED, "blur", "contrast", "dirt")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, help="dataset.yaml:SPLIT[@PREFIX]")
    parser.add_argument("--real", action="append", default=[], help="NAME=dataset.yaml:SPLIT[@P]")
    parser.add_argument("--strategies", help="comma-separated; all registered ones by default")
    parser.add_argument("--streams", help="comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--network", help="an ONNX file of the bundle in place of model.onnx")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="frames of each stream")
    parser.add_argument("--out", type=Path, default=Path("out/adaptation"))
    parser.add_argument("--options", default="{}", help="JSON: options of the strategies")
    return parser.parse_args()


class InMemory(Dataset):
    """A dataset whose frames are decoded once."""

    frames: dict[int, LabelledFrame]

    def read(self, index: int) -> LabelledFrame:
        if index not in self.frames:
            self.frames[index] = super().read(index)
        return self.frames[index]


def open_frames(spec: str, limit: int | None = None) -> InMemory:
    """The frames of ``dataset.yaml:SPLIT[@PREFIX]``."""
    path, _, prefix = spec.partition("@")
    found = load_dataset(path)
    samples = [sample for sample in found.samples if sample.stem.startswith(prefix)][:limit]
    if not samples:
        raise SystemExit(f"error: no frame of {path} begins with '{prefix}'")
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    opened = InMemory(**{**fields, "samples": samples})
    opened.frames = {}
    return opened


@dataclass(frozen=True)
class Stream:
    """Frames, and the shift drawn over them, if any."""

    name: str
    frames: Dataset
    shift: str | None = None


def streams_of(args: argparse.Namespace) -> list[Stream]:
    home = open_frames(args.data, args.limit)
    found = [Stream("unshifted", home)]
    for kind in KINDS:
        for grade, severity in SEVERITIES.items():
            found.append(Stream(f"{kind} {grade}", home, f"{kind}:{severity}"))
    for given in args.real:
        name, _, spec = given.partition("=")
        found.append(Stream(name, open_frames(spec, args.limit)))
    wanted = None if args.streams is None else args.streams.split(",")
    return [s for s in found if wanted is None or s.name in wanted or s.name.split()[0] in wanted]


def open_perception(bundle: Bundle, network: str | None, threads: int) -> Perception:
    if network is None:
        return Perception(bundle, "onnxruntime", "fp32", threads=threads)
    engine = OnnxRuntimeEngine(bundle.file(network), threads, "int8", literal=True)
    return Perception(bundle, engine=engine)


def learner_for(perception: Perception, strategy: str, **options: Any) -> Learner:
    """A learner as on the robot, with nothing on disk."""
    bundle = perception.bundle
    memory = PlaceMemory(Reference.of(bundle), known=known_places(bundle))
    probe = probe_of(perception)
    return Learner(bundle, strategy, "on", None, memory, Guard(bundle), probe, **options)


def run(perception: Perception, strategy: str, stream: Stream, seed: int, options: Any) -> dict:
    """One strategy on one stream."""
    perception.adapter = identity_adapter(perception.manifest)
    learner = None if strategy == "none" else learner_for(perception, strategy, **options)
    shifts = None if stream.shift is None else ShiftStream(parse_shifts(stream.shift), seed)
    adapting = Adapting(perception, learner, shifts)
    figures = judged(adapting, stream.frames)
    log = [] if learner is None else list(learner.guard.log.recent)
    trace = adapting.trace
    return {
        "miou": figures["segmentation"]["miou"],
        "ap50": figures.get("detection", {}).get("map_50"),
        "events": [event for event in trace.events if not event[1].startswith("fault")],
        "judged": [(r["promote"], r["reasons"], r["numbers"]) for r in log if r["kind"] == "judge"],
        "adapted": float(np.mean(trace.adapted)) if trace.adapted else 0.0,
        "perceived_ms": later_and_all(trace.perceived_ms),
        "learned_ms": later_and_all(trace.learned_ms),
        "drift": [float(np.nanmedian(trace.drift)), float(np.nanmax(trace.drift))]
        if trace.drift
        else None,
    }


def later_and_all(times: list[float]) -> list[float]:
    """Mean over the later half, by when an adapter is found, and over all."""
    return [float(np.mean(times[len(times) // 2 :])), float(np.mean(times))]


class Runs:
    """What was run, by strategy, stream and seed, kept as JSON lines."""

    def __init__(self, path: Path, about: str) -> None:
        self.path, self.about = path, about
        self.found: dict[tuple[str, str, int], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.is_file() else ():
            record = json.loads(line)
            if record["about"] == about:
                self.found[record["strategy"], record["stream"], record["seed"]] = record

    def add(self, strategy: str, stream: str, seed: int, figures: dict[str, Any]) -> None:
        record = {"about": self.about, "strategy": strategy, "stream": stream, "seed": seed}
        record |= figures
        self.found[strategy, stream, seed] = record
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def mean(self, strategy: str, stream: str, key: str) -> float:
        """Mean over the seeds; NaN where nothing was run or measured."""
        found = [r[key] for (a, b, _), r in self.found.items() if (a, b) == (strategy, stream)]
        known = [value for value in found if value is not None]
        return float(np.mean(known)) if known else float("nan")


def regained(runs: Runs, strategy: str, stream: str) -> float:
    """Share of the loss that a strategy takes back on one shifted stream."""
    home = runs.mean("none", "unshifted", "miou")
    before, after = (runs.mean(name, stream, "miou") for name in ("none", strategy))
    return (after - before) / (home - before)


def show(runs: Runs, strategies: list[str], streams: list[Stream]) -> None:
    console = Console()
    names = [s.name for s in streams]
    for key, title in (("miou", "mIoU, percent"), ("ap50", "AP@.5, percent")):
        table = Table("stream", *strategies, title=title, title_justify="left")
        for name in names:
            table.add_row(name, *(f"{100 * runs.mean(s, name, key):.1f}" for s in strategies))
        console.print(table)
    counted = [n for n in names if n.split()[0] in COUNTED]
    table = Table("strategy", "regained", "least", "worst loss", "on", "cost steady", "cost all")
    for strategy in strategies:
        shares = [regained(runs, strategy, n) for n in counted]
        losses = {n: runs.mean("none", n, "miou") - runs.mean(strategy, n, "miou") for n in names}
        worst = max(losses, key=lambda n: losses[n] if losses[n] == losses[n] else -1)
        row = [f"{np.mean(shares):.2f}" if shares else "-", f"{min(shares):.2f}" if shares else "-"]
        row += [f"{100 * losses[worst]:+.2f}", worst]
        table.add_row(strategy, *row, *(f"{c:.1%}" for c in costs(runs, strategy)))
    console.print(table)


def costs(runs: Runs, strategy: str) -> list[float]:
    """What the learner adds to perception, over the later half and over all."""
    found = [r for (name, _, _), r in runs.found.items() if name == strategy]
    return [
        float(np.mean([r["learned_ms"][k] / r["perceived_ms"][k] for r in found])) for k in (0, 1)
    ]


def todo(
    args: argparse.Namespace, strategies: list[str], streams: list[Stream], runs: Runs
) -> Iterator[tuple[str, Stream, int]]:
    for stream in streams:
        for strategy in strategies:
            for seed in range(args.seeds if stream.shift else 1):
                if (strategy, stream.name, seed) not in runs.found:
                    yield strategy, stream, seed


def main() -> None:
    args = parse_arguments()
    bundle = open_bundle(args.bundle)
    strategies = args.strategies.split(",") if args.strategies else strategy_names()
    strategies = ["none", *(s for s in strategies if s != "none")]
    files = (args.network or "model.onnx", "predictor.safetensors")
    digest = "-".join(bundle.manifest.files[f].sha256[:12] for f in files if bundle.has(f))
    runs = Runs(args.out / "runs.jsonl", f"{digest} {args.data} {args.limit} {args.options}")
    streams = streams_of(args)
    perception = open_perception(bundle, args.network, args.threads)
    work = list(todo(args, strategies, streams, runs))
    for strategy, stream, seed in track(work, "streams", console=Console(stderr=True)):
        options = json.loads(args.options).get(strategy, {})
        figures = run(perception, strategy, stream, seed, options)
        runs.add(strategy, stream.name, seed, figures)
    show(runs, strategies, streams)


if __name__ == "__main__":
    main()
