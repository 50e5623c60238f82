"""`fieldsight-distill pretrain`: an encoder from unlabelled images."""

from __future__ import annotations

from typing import Annotated

import typer

from distill.cli.app import (
    Accelerator,
    Config,
    Devices,
    Json,
    Nodes,
    Out,
    Overrides,
    Resume,
    Seed,
    app,
    finish,
    with_seed,
)
from edge_runtime.terminal import console


@app.command()
def pretrain(
    data: Annotated[
        list[str], typer.Option(help="Folder, dataset.yaml[:split] or shards*.tar; repeatable.")
    ],
    out: Out,
    overrides: Overrides = None,
    method: Annotated[
        str | None, typer.Option(help="simclr, dino, mae, ...; brings its recipe.")
    ] = None,
    config: Config = None,
    encoder: Annotated[str | None, typer.Option(help="timm name of the trunk.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Start from: hub, FILE.safetensors or a run of pretrain.")
    ] = None,
    resume: Resume = False,
    seed: Seed = None,
    devices: Devices = 1,
    num_nodes: Nodes = 1,
    accelerator: Accelerator = "auto",
    json_path: Json = None,
) -> None:
    """A teacher, or a student's trunk, from unlabelled images by a self-supervised method.

    Example: fieldsight-distill pretrain --data recordings/ --method dino
    --encoder vit_small_patch16_224 --weights hub --out runs/teacher epochs=50
    """
    from distill.data.images import open_images
    from distill.pretraining import WEIGHTS, read_settings
    from distill.pretraining import pretrain as run

    asked = [f"encoder={encoder}"] if encoder else []
    settings = read_settings(method, config, [*asked, *with_seed(overrides, seed)])
    summary = run(
        open_images(data), out, settings, weights, resume, devices, num_nodes, accelerator
    )
    for line in summary["left_out"]:
        console.print(f"left out: {line}", style="yellow", markup=False, soft_wrap=True)
    finish(
        json_path,
        summary,
        [out / WEIGHTS, out / "metrics.csv"],
        f"fieldsight-distill evaluate {out} --data DATA",
    )
