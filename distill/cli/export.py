"""`fieldsight-distill export`: a run into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.app import Json, app, finish, open_data, parse_size
from edge_runtime.terminal import console


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of finetune.")],
    data: Annotated[str, typer.Option(help="Source-domain frames: reference and canary.")],
    out: Annotated[Path, typer.Option(help="NAME.bundle")],
    size: Annotated[str | None, typer.Option(help="Network input HxW, multiples of 32.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Boxes before suppression.")] = 100,
    mask_confidence: Annotated[bool, typer.Option(help="Add mask_confidence.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
    evaluate_on: Annotated[
        str | None, typer.Option(help="Labelled data; its figures go into the manifest.")
    ] = None,
    rehearsal: Annotated[
        int, typer.Option(min=0, help="Labelled frames to add, for `fieldsight-run consolidate`.")
    ] = 192,
    json_path: Json = None,
) -> None:
    """A fine-tuned run into a bundle, checked against torch."""
    from distill.export import export as write

    shape = parse_size(size) if size else None
    judge = open_data(evaluate_on, "val") if evaluate_on else None
    bundle, metrics = write(
        run,
        open_data(data, "train"),
        out,
        shape,
        top_k,
        mask_confidence,
        overwrite,
        judge,
        rehearsal,
    )
    parity = metrics["parity"]
    console.print(
        f"torch against ONNX Runtime: {parity['mask_equal']:.4%} of mask pixels equal, "
        f"boxes within {parity['box_px']:.4f} px"
    )
    finish(json_path, metrics, [bundle.path], f"fieldsight-distill evaluate {out} --data {data}")
