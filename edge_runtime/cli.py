"""`fieldsight-run`: what a robot does with a bundle, from the command line."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edge_runtime.bundle import open_bundle
from edge_runtime.errors import FieldsightError, InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.perception import Perception

app = typer.Typer(
    name="fieldsight-run",
    help="Run a model bundle: look at it, check it, use it on images, time it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder NAME.bundle")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON, too")
]
Backend = Annotated[str, typer.Option(help="auto or onnxruntime")]
Precision = Annotated[str, typer.Option(help="auto, fp32, fp16 or int8")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads for one inference")]


@app.callback()
def _settings(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)


@app.command(epilog="Example: `fieldsight-run info my.bundle`")
def info(bundle: BundlePath, json_file: JsonFile = None) -> None:
    """Show what a bundle is: tasks, classes, network, origin, metrics."""
    opened = open_bundle(bundle, verify=False)
    manifest = opened.manifest
    spec = manifest.input
    table = _table(manifest.name)
    table.add_row("created", manifest.created)
    table.add_row("input", f"{spec.width}x{spec.height} {spec.color} {spec.dtype}, {spec.resize}")
    for task in manifest.tasks:
        names = [entry.name for entry in manifest.classes.get(task, [])]
        table.add_row(task, f"{len(names)} classes: {', '.join(names)}")
    table.add_row("student", manifest.student.trunk)
    table.add_row("adapter", f"{manifest.adapter_size} values")
    table.add_row("teachers", ", ".join(manifest.provenance.teachers) or "none")
    for name, value in _flat(manifest.metrics):
        table.add_row(name, value)
    for name, file in sorted(manifest.files.items()):
        table.add_row(name, f"{file.bytes / 1e6:.2f} MB")
    console.print(table)
    _write_json(json_file, manifest.model_dump(mode="json"))
    _next("fieldsight-run", "verify", bundle)


@app.command(epilog="Example: `fieldsight-run verify my.bundle --json verify.json`")
def verify(
    bundle: BundlePath,
    backend: Backend = "auto",
    precision: Precision = "auto",
    json_file: JsonFile = None,
) -> None:
    """Check every file's SHA-256, then the network against its canary frames."""
    opened = open_bundle(bundle)
    console.print(f"{len(opened.manifest.files)} files are whole and unaltered")
    report: dict[str, Any] = {"files": len(opened.manifest.files), "self_test": None}
    perception = Perception(opened, backend, precision)
    report["engine"] = perception.engine.name
    if opened.has("canary.npz"):
        report["self_test"] = perception.self_test()
        for name, value in _flat(report["self_test"]):
            console.print(f"self-test {name}: {value}")
    else:
        console.print("no canary.npz in this bundle, so no self-test")
    _write_json(json_file, report)
    _next("fieldsight-run", "predict", bundle, "IMAGES", "--out", "out/predict")


@app.command(epilog="Example: `fieldsight-run predict my.bundle photos/ --out out/predict --masks`")
def predict(
    bundle: BundlePath,
    source: Annotated[
        str,
        typer.Argument(
            help="Image, folder, video, camera:0, or dataset.yaml:SPLIT (keeps its COCO ids)"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results")],
    score_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.3,
    iou_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.6,
    masks: Annotated[bool, typer.Option(help="Write masks/*.png of class indices")] = True,
    overlays: Annotated[bool, typer.Option(help="Write overlays/*.jpg")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames")] = None,
    backend: Backend = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Write overlays, masks, predictions.jsonl and COCO results for images or video."""
    from edge_runtime.prediction import PredictionWriter
    from edge_runtime.prediction import predict as run
    from edge_runtime.telemetry import LatencyWindow

    perception = Perception(
        bundle, backend, precision, score_threshold, iou_threshold, threads=threads
    )
    frames, ids = _frames(source, limit)
    latency = LatencyWindow()
    with frames, _progress() as progress:
        bar = progress.add_task("predict", total=frames.length)

        def watched(frame: Any) -> Any:
            result = perception(frame)
            latency.add(result.timings_ms["total"])
            progress.advance(bar)
            return result

        writer = PredictionWriter(out, perception, masks, overlays, ids)
        try:
            run(watched, frames, writer)
        finally:
            written = writer.close()
            _write_json(
                json_file,
                {
                    "frames": writer.frames,
                    "skipped": frames.skipped,
                    "total_ms": latency.summary(),
                    "engine": perception.engine.name,
                    "written": [str(path) for path in written],
                },
            )
    console.print(f"{writer.frames} frames, {frames.skipped} skipped; wrote:")
    for path in written:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    _next("fieldsight-run", "benchmark", bundle)


@app.command(epilog="Example: `fieldsight-run benchmark my.bundle --frames 200 --json speed.json`")
def benchmark(
    bundle: BundlePath,
    frames: Annotated[int, typer.Option(min=1, help="Timed frames")] = 100,
    raw: Annotated[str, typer.Option(help="Raw image as WIDTHxHEIGHT")] = "640x480",
    backend: Backend = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Time the network alone and perception as a whole on this machine."""
    from edge_runtime.benchmark import benchmark as run

    size = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", raw)
    if not size:
        raise InputError(f"--raw '{raw}': expected WIDTHxHEIGHT in pixels, such as 640x480")
    perception = Perception(bundle, backend, precision, threads=threads)
    with _progress() as progress:
        bar = progress.add_task("benchmark", total=frames)
        report = run(
            perception, frames, (int(size[2]), int(size[1])), lambda: progress.advance(bar)
        )
    table = _table(report["engine"])
    for key, title in (("engine_ms", "network"), ("total_ms", "perception")):
        p = report[key]
        table.add_row(title, f"p50 {p['p50']:.2f}  p90 {p['p90']:.2f}  p99 {p['p99']:.2f} ms")
    table.add_row("frames per second", f"{report['fps']:.1f}")
    console.print(table)
    _write_json(json_file, report)
    _next("fieldsight-run", "predict", bundle, "IMAGES", "--out", "out/predict")


@app.command(epilog="Example: `fieldsight-run doctor`")
def doctor(json_file: JsonFile = None) -> None:
    """Show what this machine offers and what is missing."""
    from edge_runtime.doctor import examine, missing_packages

    report = examine()
    for heading, facts in report.items():
        table = _table(heading)
        for name, value in facts.items():
            table.add_row(name, value)
        console.print(table)
    _write_json(json_file, report)
    if missing := missing_packages(report):
        raise InputError(f"missing packages: {', '.join(missing)}; run pip install fieldsight")
    _next("fieldsight-run", "info", "NAME.bundle")


def main() -> None:
    """Run the command line; known errors are printed in red, without a traceback."""
    try:
        app()
    except FieldsightError as error:
        errors.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("stopped", style="red")
        sys.exit(130)


def _frames(source: str, limit: int | None) -> tuple[Any, Any]:
    """Frames of `source`, with the COCO ids of a dataset if it is one."""
    from edge_runtime.prediction import DatasetFrames, DatasetIds
    from edge_runtime.sources import open_source

    if not re.search(r"\.ya?ml(:[^/]*)?$", source):
        return open_source(source, limit), DatasetIds()
    from edge_runtime.datasets import load_dataset

    frames = DatasetFrames(load_dataset(source), limit)
    return frames, frames.ids


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeRemainingColumn(), console=errors, transient=True)


def _table(title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as ("a.b", "text") pairs."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append(
                (f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value))
            )
    return rows


def _write_json(path: Path | None, values: dict[str, Any]) -> None:
    if path is not None:
        atomic_write_text(path, json.dumps(values, indent=2) + "\n")
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _next(*words: str | Path) -> None:
    command = shlex.join(str(word) for word in words)
    console.print(f"next: {command}", style="dim", markup=False, highlight=False, soft_wrap=True)


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
