"""`fieldsight-run adapt`: a recording through perception and the learner, as on the robot."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from edge_runtime import terminal
from edge_runtime.bundle import identity_adapter, open_bundle
from edge_runtime.cli.app import Backend, Precision, Threads, app
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.perception import Perception
from edge_runtime.terminal import BundlePath, JsonFile

if TYPE_CHECKING:
    from edge_runtime.adaptation.album import Album
    from edge_runtime.adaptation.learner import Learner
    from edge_runtime.adaptation.replay import Adapting
    from edge_runtime.datasets import Dataset
    from edge_runtime.sources import FrameSource


@app.command(
    epilog="Example: `fieldsight-run adapt my.bundle drive.mp4 --shift fog:0.5@100-400 --out out`"
)
def adapt(
    bundle: BundlePath,
    source: Annotated[
        str | None,
        typer.Argument(help="Image folder, video, camera:0, or dataset.yaml:SPLIT"),
    ] = None,
    shift: Annotated[
        str | None, typer.Option(help="Shifts to draw: KIND[:SEVERITY][@START-[END]][~RAMP],...")
    ] = None,
    strategy: Annotated[str, typer.Option(help="How adapters are found")] = "align",
    mode: Annotated[str, typer.Option(help="on, shadow (decide, use nothing) or off")] = "on",
    store: Annotated[Path | None, typer.Option(help="Keeps adapters and places")] = None,
    frames: Annotated[
        Path | None, typer.Option(help="Keeps frames for fieldsight-run consolidate")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html")] = None,
    seed: Annotated[int, typer.Option(help="Of the shifts")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what --store keeps, and end")] = False,
    backend: Backend = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Replay a recording with adaptation and say what it did, and what it was worth."""
    if list_:
        _list(bundle, store)
        return
    if source is None:
        raise InputError("nothing to replay: name a source, or use --list with --store")
    from edge_runtime.adaptation.album import Album
    from edge_runtime.adaptation.replay import Adapting
    from edge_runtime.adaptation.shifts import ShiftStream, parse_shifts

    drawn = ShiftStream(parse_shifts(shift), seed) if shift else None
    perception = Perception(bundle, backend, precision, threads=threads)
    learner = _learner(perception, strategy, mode, store, frames)
    stream = Adapting(perception, learner, drawn)
    album = Album(stream) if out is not None else None
    dataset = _labelled(source, limit)
    figures: dict[str, Any] = {}
    if dataset is None:
        _run(stream, source, limit)
    else:
        figures = _judge(stream, dataset, drawn)
    summary = _summary(stream, learner, figures)
    _show(summary)
    if out is not None and album is not None:
        title = f"{bundle.name} on {source}" + (f" with {shift}" if shift else "")
        _write_report(out, title, stream, figures, summary, album, learner.monitor.threshold)
    terminal.write_json(json_file, summary)
    words = ["fieldsight-run", "adapt", str(bundle)]
    last = [source, "--store", "adapters"] if store is None else ["--store", str(store), "--list"]
    if frames is not None:
        words, last = ["fieldsight-run", "consolidate", str(bundle)], ["--memory", str(frames)]
    terminal.next_command(*words, *last)


def _learner(
    perception: Perception, strategy: str, mode: str, store: Path | None, frames: Path | None
) -> Learner:
    from edge_runtime.adaptation.canary import canary_of
    from edge_runtime.adaptation.frame_memory import FrameMemory
    from edge_runtime.adaptation.guard import Guard
    from edge_runtime.adaptation.known_places import known_places
    from edge_runtime.adaptation.learner import Learner
    from edge_runtime.adaptation.memory import PlaceMemory
    from edge_runtime.adaptation.reference import Reference
    from edge_runtime.adaptation.store import AdapterStore
    from edge_runtime.adaptation.trial import probe_of

    bundle = perception.bundle
    log = None if store is None else store / "decisions.jsonl"
    return Learner(
        bundle,
        strategy,
        mode,
        None if store is None else AdapterStore(store, bundle),
        PlaceMemory(Reference.of(bundle), store, known=known_places(bundle)),
        Guard(bundle, log=log, canary=canary_of(perception)),
        probe_of(perception),
        frames=None if frames is None else FrameMemory(frames, bundle),
    )


def _labelled(source: str, limit: int | None) -> Dataset | None:
    """The source as a dataset, if it is one with labels."""
    if not re.search(r"\.ya?ml(:[^/]*)?$", source):
        return None
    from edge_runtime.datasets import load_dataset

    dataset = load_dataset(source)
    dataset.samples = dataset.samples[:limit]
    labelled = dataset.boxes is not None or any(sample.mask for sample in dataset.samples)
    return dataset if labelled else None


def _run(stream: Adapting, source: str, limit: int | None) -> None:
    from edge_runtime.prediction import open_frames

    frames: FrameSource = open_frames(source, limit)
    with frames, _bar("adapt", frames.length) as advance:
        for frame in frames:
            stream(frame)
            advance()


def _judge(stream: Adapting, dataset: Dataset, drawn: Any) -> dict[str, Any]:
    """Figures before and after, each over the whole stream in its order."""
    from edge_runtime.adaptation.replay import Adapting, judged

    after = judged(stream, dataset, progress=True)
    perception = stream.perception
    perception.adapter = identity_adapter(perception.manifest)
    before = judged(Adapting(perception, None, drawn), dataset, progress=True)
    return {"before": before, "after": after}


def _bar(title: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
    @contextlib.contextmanager
    def shown() -> Iterator[Callable[[], None]]:
        with terminal.progress_bar() as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)

    return shown()


def _summary(stream: Adapting, learner: Learner, figures: dict[str, Any]) -> dict[str, Any]:
    """What goes into the JSON file."""
    trace = stream.trace
    last = trace.last
    judged = {
        name: {key: value for key, value in found.items() if key != "curve"}
        for name, found in figures.items()
    }
    return {
        "frames": len(trace.perceived_ms),
        "drift": None if last is None else last.score,
        "drift_threshold": learner.monitor.threshold,
        "drift_per_point": {} if last is None else last.per_point,
        "state": "normal" if last is None else last.state,
        "adapted": learner.adapted,
        "promotions": trace.count("promoted"),
        "rollbacks": trace.count("alarm", "rolled back"),
        "refusals": trace.count("refused"),
        "recalls": trace.count("recalled"),
        "faults": learner.counters["faults"],
        "frames_kept": learner.counters["kept frames"],
        "events": [{"frame": index, "event": what} for index, what in trace.events],
        "perceived_ms": float(np.mean(trace.perceived_ms)),
        "learned_ms": float(np.mean(trace.learned_ms)),
        **judged,
    }


def _show(summary: dict[str, Any]) -> None:
    table = terminal.table_of("adaptation")
    for name in ("frames", "drift", "drift_threshold", "state", "adapted"):
        table.add_row(name, dict(terminal.flat(summary)).get(name, "-"))
    for name in ("promotions", "rollbacks", "refusals", "recalls", "faults"):
        table.add_row(name, str(summary[name]))
    table.add_row("ms a frame", "{perceived_ms:.1f}, learning {learned_ms:.2f}".format(**summary))
    for task, key in (("segmentation", "miou"), ("detection", "map_50")):
        values = [summary.get(when, {}).get(task, {}).get(key) for when in ("before", "after")]
        if None not in values:
            table.add_row(f"{task} {key}", "{:.4f} before, {:.4f} after".format(*values))
    terminal.console.print(table)


def _list(bundle: Path, store: Path | None) -> None:
    """Show the adapters and places that a store keeps for a bundle."""
    if store is None:
        raise InputError("--list needs --store: the folder that keeps adapters")
    from edge_runtime.adaptation.known_places import known_places
    from edge_runtime.adaptation.memory import PlaceMemory
    from edge_runtime.adaptation.reference import Reference
    from edge_runtime.adaptation.store import AdapterStore

    if not store.is_dir():
        raise InputError(f"{store}: no such folder; nothing was stored there yet")
    opened = open_bundle(bundle)
    table = terminal.table_of(f"adapters for {bundle.name}", "version", "stored", "note")
    for stored in AdapterStore(store, opened).versions():
        table.add_row(str(stored.version), stored.created, _note(stored.note))
    terminal.console.print(table)
    table = terminal.table_of("places", "id", "version", "visits", "note")
    for place in PlaceMemory(Reference.of(opened), store, known=known_places(opened)).places:
        table.add_row(str(place.id), str(place.version), str(place.visits), _note(place.note))
    terminal.console.print(table)
    terminal.next_command("fieldsight-run", "adapt", bundle, "SOURCE", "--store", store)


def _note(note: dict[str, Any]) -> str:
    """A note without the statistics of the place, which say little to people."""
    shown = {name: value for name, value in note.items() if name != "place"}
    return ", ".join(f"{name} {value}" for name, value in terminal.flat(shown))


def _write_report(
    out: Path,
    title: str,
    stream: Adapting,
    figures: dict[str, Any],
    summary: dict[str, Any],
    album: Album,
    threshold: float,
) -> None:
    from edge_runtime.adaptation.report import page

    plain = {key: value for key, value in summary.items() if key != "events"}
    curves = {name: found["curve"] for name, found in figures.items() if found.get("curve")}
    text = page(
        title,
        dict(terminal.flat(plain)),
        stream.trace,
        threshold,
        curves,
        album.pictures,
        album.note,
    )
    atomic_write_text(out / "report.html", text)
    terminal.wrote(out / "report.html")
