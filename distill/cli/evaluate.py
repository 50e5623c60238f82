"""`fieldsight-distill evaluate`: what a bundle reaches on labelled data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.app import Json, app, finish, open_data
from edge_runtime.terminal import console


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="NAME.bundle")],
    data: Annotated[str, typer.Option(help="Labelled dataset.yaml:split.")],
    limit: Annotated[int | None, typer.Option(help="Only so many frames.")] = None,
    json_path: Json = None,
) -> None:
    """mIoU and average precision of a bundle, by the code the robot runs."""
    from edge_runtime.evaluation import evaluate as judge
    from edge_runtime.perception import Perception

    with_labels = open_data(data, "val")
    figures = judge(Perception(bundle), with_labels, limit=limit)
    console.print_json(json.dumps(figures))
    finish(json_path, figures, [], f"fieldsight-run predict {bundle} SOURCE --out DIR")
