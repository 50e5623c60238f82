"""`fieldsight-distill evaluate`: what a bundle or a run reaches on labelled data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.app import Json, app, finish, open_data
from edge_runtime.terminal import console

if TYPE_CHECKING:
    from distill.evaluation.per_image import PerImage


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="NAME.bundle, or a run folder of finetune.")],
    data: Annotated[str, typer.Option(help="Labelled dataset.yaml:split.")],
    limit: Annotated[int | None, typer.Option(help="Only so many frames.")] = None,
    per_image: Annotated[
        Path | None,
        typer.Option(help="Results image by image, for compare. A run: RUN/per_image.npz."),
    ] = None,
    json_path: Json = None,
) -> None:
    """mIoU and average precision of a bundle by the code the robot runs; the same of a run.

    Example: fieldsight-distill evaluate runs/tuned --data camvid/dataset.yaml:val
    """
    from distill.evaluation.per_image import FILE_NAME, write_per_image
    from distill.evaluation.running import is_run

    run = is_run(model)
    figures, results = _judge(model, data, limit)
    written = per_image or (model / FILE_NAME if run else None)
    if written is not None:
        write_per_image(written, results)
    console.print_json(json.dumps(figures))
    then = f"fieldsight-run predict {model} SOURCE --out DIR"
    if run:
        then = f"fieldsight-distill compare OTHER {model}"
    finish(json_path, figures, [written] if written else [], then)


def _judge(model: Path, data: str, limit: int | None) -> tuple[dict[str, Any], PerImage]:
    """Figures of a run or a bundle, and its results image by image."""
    from distill.evaluation.recording import judge
    from distill.evaluation.running import RunPerception, is_run
    from edge_runtime.perception import Perception

    opened: Any = RunPerception(model) if is_run(model) else Perception(model)
    return judge(opened, open_data(data, "val"), limit)
