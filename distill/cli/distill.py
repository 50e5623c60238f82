"""`fieldsight-distill distill`: teachers into a student, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.app import (
    Accelerator,
    Config,
    Devices,
    Encoder,
    Json,
    Out,
    Overrides,
    Resume,
    Seed,
    Student,
    app,
    finish,
    open_data,
    with_seed,
)
from distill.settings import DistillSettings, load_settings


@app.command()
def distill(
    data: Annotated[list[str], typer.Option(help="Unlabelled images; repeatable.")],
    teacher: Annotated[list[str], typer.Option(help="NAME or NAME@FILE; repeatable.")],
    out: Out,
    student: Student = "mobilenetv4_conv_small",
    overrides: Overrides = None,
    config: Config = None,
    cache: Annotated[bool, typer.Option(help="Keep teacher features on disk.")] = True,
    cache_dir: Annotated[Path | None, typer.Option(help="Default: OUT/cache.")] = None,
    probe: Annotated[str | None, typer.Option(help="Labelled data for the probe.")] = None,
    encoder: Encoder = None,
    resume: Resume = False,
    seed: Seed = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
    json_path: Json = None,
) -> None:
    """Teachers into a student's trunk and neck, without labels.

    Example: fieldsight-distill distill --data recordings/ --teacher vit_base_patch14_dinov2
    --out runs/distilled epochs=100
    """
    from distill.distillation import distil

    settings = load_settings(DistillSettings, config, with_seed(overrides, seed))
    datasets = [open_data(d, "train") for d in data]
    folder = (cache_dir or out / "cache") if cache else None
    judged = open_data(probe, "val") if probe else None
    summary = distil(
        datasets,
        teacher,
        student,
        out,
        settings,
        folder,
        judged,
        encoder,
        resume,
        devices,
        accelerator,
    )
    finish(
        json_path,
        summary,
        [out / "student.safetensors", out / "metrics.csv"],
        f"fieldsight-distill finetune --encoder {out} --student {student} --data DATASET --out DIR",
    )
