"""`fieldsight-distill finetune`: heads and student from few labels."""

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
from distill.settings import FinetuneSettings, load_settings
from edge_runtime.errors import InputError


@app.command()
def finetune(
    data: Annotated[
        str,
        typer.Option(
            help="Labelled dataset.yaml[:split]; for classification shards, or a folder with one "
            "subfolder a class."
        ),
    ],
    out: Out,
    student: Student = "mobilenetv4_conv_small",
    overrides: Overrides = None,
    config: Config = None,
    val: Annotated[str | None, typer.Option(help="Held-back dataset.yaml:split.")] = None,
    encoder: Encoder = None,
    tasks: Annotated[
        str,
        typer.Option(
            "--task",
            "--tasks",
            help="segmentation, detection or both with a comma; classification.",
        ),
    ] = "segmentation,detection",
    head: Annotated[
        str, typer.Option(help="student, or of workstations: unet, fpn, faster-rcnn, mask-rcnn.")
    ] = "student",
    mode: Annotated[
        str | None, typer.Option(help="full, linear (frozen trunk) or prototype (class means).")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Use only 10% or 40 of the labels.")] = None,
    unlabelled: Annotated[
        list[str] | None, typer.Option(help="Images to learn from beside the labels; repeatable.")
    ] = None,
    pseudo_labels: Annotated[
        Path | None, typer.Option(help="Bundle or run of a larger model that labels the rest.")
    ] = None,
    resume: Resume = False,
    seed: Seed = None,
    devices: Devices = 1,
    accelerator: Accelerator = "auto",
    json_path: Json = None,
) -> None:
    """The heads, then the whole student, from few labels.

    Example: fieldsight-distill finetune --data camvid/dataset.yaml:train --labels 10%
    --encoder runs/distilled --out runs/tuned
    """
    pairs = [*with_seed(overrides, seed), *([f"mode={mode}"] if mode else [])]
    settings = load_settings(FinetuneSettings, config, pairs)
    chosen = [t.strip() for t in tasks.split(",") if t.strip()]
    if "classification" in chosen:
        if len(chosen) > 1 or head != "student" or pseudo_labels is not None:
            raise InputError(
                "classification is trained alone, without --head and --pseudo-labels; "
                "--unlabelled images are pseudo-labelled as it learns"
            )
        from distill.classification import finetune_classifier

        summary = finetune_classifier(
            data, labels, student, out, settings, val, encoder, unlabelled, resume, devices,
            accelerator,
        )  # fmt: skip
        then = f"fieldsight-distill evaluate {out} --data LABELLED"
        return finish(json_path, summary, [out / "student.safetensors"], then)
    from distill.data.images import open_images
    from distill.finetuning import finetune as run

    whole = open_data(data, "train")
    used = whole.subset(labels, settings.seed) if labels else whole
    extra = []
    if pseudo_labels is not None:
        from distill.pseudo import label_rest

        extra.append(label_rest(pseudo_labels, whole, used, out / "pseudo"))
    summary = run(
        used,
        student,
        out,
        settings,
        chosen,
        open_data(val, "val") if val else None,
        encoder,
        extra,
        resume,
        devices,
        accelerator,
        head,
        open_images(unlabelled) if unlabelled else None,
    )
    then = f"fieldsight-distill export {out} --data {data} --out {out.name}.bundle"
    if head != "student":
        then = f"fieldsight-distill evaluate {out} --data {data}"
    finish(json_path, summary, [out / "student.safetensors", out / "metrics.csv"], then)
