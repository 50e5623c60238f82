"""`fieldsight-run benchmark`: how fast a bundle runs on this machine."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from edge_runtime import terminal
from edge_runtime.cli.app import Backend, Precision, Threads, app
from edge_runtime.errors import InputError
from edge_runtime.perception import Perception
from edge_runtime.terminal import BundlePath, JsonFile


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
    with terminal.progress_bar() as progress:
        bar = progress.add_task("benchmark", total=frames)
        report = run(
            perception, frames, (int(size[2]), int(size[1])), lambda: progress.advance(bar)
        )
    table = terminal.table_of(report["engine"])
    for key, title in (("engine_ms", "network"), ("total_ms", "perception")):
        p = report[key]
        table.add_row(title, f"p50 {p['p50']:.2f}  p90 {p['p90']:.2f}  p99 {p['p99']:.2f} ms")
    table.add_row("frames per second", f"{report['fps']:.1f}")
    terminal.console.print(table)
    terminal.write_json(json_file, report)
    terminal.next_command("fieldsight-run", "predict", bundle, "IMAGES", "--out", "out/predict")
