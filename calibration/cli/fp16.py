"""`fieldsight-calibrate fp16`: a bundle's network in FP16 for TensorRT, judged before it stays."""

from __future__ import annotations

from typing import Annotated

import typer

from calibration.cli.app import app
from edge_runtime import terminal
from edge_runtime.bundle import open_bundle
from edge_runtime.terminal import BundlePath, JsonFile


@app.command(epilog="Example: `fieldsight-calibrate fp16 my.bundle --data my/dataset.yaml:val`")
def fp16(
    bundle: BundlePath,
    data: Annotated[
        str, typer.Option(help="dataset.yaml:SPLIT (judged by its labels), image folder or video")
    ],
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Points that may be lost: of mIoU or AP@.5 (0.2 if not given), without labels of "
            "agreement with FP32 (1.0)",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames searched for overflow")] = 64,
    json_file: JsonFile = None,
) -> None:
    """Convert a bundle's network to FP16 where that is safe, and say what it cost.

    Layers whose values come near FP16's range on the frames of --data stay in FP32.
    """
    from calibration.fp16 import convert, evenly, labelled_data, write
    from calibration.frames import read_candidates

    opened = open_bundle(bundle)
    labelled = labelled_data(opened, data)
    with terminal.progress_bar() as progress:
        bar = progress.add_task("reading frames", total=None)
        chosen = evenly(read_candidates(opened, data, tick=lambda: progress.advance(bar)), frames)
        bar = progress.add_task("searching for overflow", total=len(chosen))
        report, network = convert(opened, chosen, labelled, budget, lambda: progress.advance(bar))
    table = terminal.table_of(f"FP16 of {opened.manifest.name}")
    for name, value in terminal.flat(report):
        table.add_row(name, value)
    terminal.console.print(table)
    terminal.write_json(json_file, report)
    written = write(opened, report, network)
    terminal.wrote(written.file("model.fp16.onnx"), written.file("calibration.json"))
    terminal.next_command("fieldsight-run", "build", bundle, "--check")
