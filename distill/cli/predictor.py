"""`fieldsight-distill predictor`: which adapter answers which looks, into a bundle."""

from __future__ import annotations

from typing import Annotated

import typer

from distill.cli.app import (
    Accelerator,
    Config,
    Devices,
    Json,
    Out,
    Overrides,
    Resume,
    Seed,
    app,
    finish,
    open_data,
    with_seed,
)
from distill.settings import PredictorSettings, load_settings
from edge_runtime.bundle import open_bundle
from edge_runtime.terminal import BundlePath


@app.command()
def predictor(
    bundle: BundlePath,
    data: Annotated[str, typer.Option(help="Training-domain frames, labelled if possible.")],
    out: Out,
    overrides: Overrides = None,
    config: Config = None,
    resume: Resume = False,
    seed: Seed = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
    json_path: Json = None,
) -> None:
    """Teach a bundle which adapter answers which looks, for adaptation on the robot.

    Example: fieldsight-distill predictor my.bundle --data my/dataset.yaml:train --out runs/looks
    """
    settings = load_settings(PredictorSettings, config, with_seed(overrides, seed))
    opened = open_bundle(bundle)
    from distill.predictor import FILE, teach_predictor

    summary = teach_predictor(
        opened, open_data(data, "train"), out, settings, resume, devices, accelerator
    )
    then = f"fieldsight-run adapt {bundle} RECORDING --shift fog:0.5"
    finish(json_path, summary, [bundle / FILE, out / "summary.json"], then)
