"""`fieldsight-run predict`: a bundle on images, video or a camera."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_runtime import terminal
from edge_runtime.cli.app import Backend, Precision, Threads, app
from edge_runtime.perception import Perception
from edge_runtime.terminal import BundlePath, JsonFile


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
    from edge_runtime.prediction import DatasetFrames, DatasetIds, PredictionWriter, open_frames
    from edge_runtime.prediction import predict as run
    from edge_runtime.telemetry import LatencyWindow

    perception = Perception(
        bundle, backend, precision, score_threshold, iou_threshold, threads=threads
    )
    frames = open_frames(source, limit)
    ids = frames.ids if isinstance(frames, DatasetFrames) else DatasetIds()
    latency = LatencyWindow()
    with frames, terminal.progress_bar() as progress:
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
            terminal.write_json(
                json_file,
                {
                    "frames": writer.frames,
                    "skipped": frames.skipped,
                    "total_ms": latency.summary(),
                    "engine": perception.engine.name,
                    "written": [str(path) for path in written],
                },
            )
    terminal.console.print(f"{writer.frames} frames, {frames.skipped} skipped; wrote:")
    for path in written:
        terminal.console.print(f"  {path}", highlight=False, soft_wrap=True)
    terminal.next_command("fieldsight-run", "benchmark", bundle)
