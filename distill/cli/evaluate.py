"""`fieldsight-distill evaluate`: what a bundle, a run or an encoder is worth."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.app import Json, app, finish, open_data
from distill.cli.evaluate_encoder import (
    EncoderRequest,
    evaluate_encoder,
    is_encoder,
    show_robustness,
)
from distill.cli.evaluate_robustness import opened_model, robustness_of
from edge_runtime.errors import InputError
from edge_runtime.terminal import console

if TYPE_CHECKING:
    from distill.evaluation.per_image import PerImage

_ENCODER = "Of an encoder"
_ROBUSTNESS = "Robustness"


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="NAME.bundle, a run folder of finetune or pretrain, or a timm encoder: NAME, "
            "NAME@FILE.safetensors; RUN@random or NAME@random is the same trunk untrained."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Labelled dataset.yaml:split; for an encoder images to fit probes on: shards, or "
            "a folder with one subfolder a class."
        ),
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many frames; of an encoder: 10000.")
    ] = None,
    per_image: Annotated[
        Path | None,
        typer.Option(help="Results image by image, for compare. A run: RUN/per_image.npz."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="Images to judge by; by default a fifth of --data.", rich_help_panel=_ENCODER
        ),
    ] = None,
    test_limit: Annotated[
        int, typer.Option(min=2, help="Images to judge by, at most.", rich_help_panel=_ENCODER)
    ] = 5000,
    views: Annotated[
        int,
        typer.Option(min=2, help="Of each of 500 images, for LiDAR.", rich_help_panel=_ENCODER),
    ] = 6,
    size: Annotated[
        str | None,
        typer.Option(help="HxW; by default what it was trained at.", rich_help_panel=_ENCODER),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write one self-contained HTML page here.", rich_help_panel=_ENCODER),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="Each epoch that a run kept, and which figures follow the probe's error.",
            rich_help_panel=_ENCODER,
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of every draw.", rich_help_panel=_ENCODER)] = 0,
    accelerator: Annotated[
        str, typer.Option(help="auto, cpu, cuda", rich_help_panel=_ENCODER)
    ] = "auto",
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Fifteen corruptions at five severities; of an encoder FGSM and PGD, too.",
            rich_help_panel=_ROBUSTNESS,
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="What errors are relative to: a supervised model of the same kind.",
            rich_help_panel=_ROBUSTNESS,
        ),
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(min=0, help="Of attacks, of 255.", rich_help_panel=_ROBUSTNESS),
    ] = 2.0,
    robustness_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images to judge by, 200 by default; of a bundle or run 40 frames.",
            rich_help_panel=_ROBUSTNESS,
        ),
    ] = None,
    json_path: Json = None,
) -> None:
    """A bundle or fine-tuned run against labels; an encoder by probes and without labels.

    Examples: fieldsight-distill evaluate runs/tuned --data camvid/dataset.yaml:val

    fieldsight-distill evaluate runs/dino --data 'train-{0000..0002}.tar' --test test-0000.tar
    --report dino.html
    """
    if baseline and not robustness:
        raise InputError("--baseline is what --robustness is relative to; add --robustness")
    if is_encoder(model):
        asked = EncoderRequest(
            test=test,
            limit=limit or 10_000,
            test_limit=test_limit,
            views=views,
            size=size,
            report=report,
            checkpoints=checkpoints,
            robustness=robustness,
            baseline=baseline,
            epsilon=epsilon,
            robustness_images=robustness_images or 200,
            per_image=per_image,
            seed=seed,
            accelerator=accelerator,
        )
        figures, written = evaluate_encoder(model, data, asked)
        words = "fieldsight-distill", "distill", "--teacher", model, "--data", data, "--out", "DIR"
        then = shlex.join(words)
        return finish(json_path, figures, written, then)
    if test or report or size or checkpoints:
        raise InputError(
            f"{model} is no encoder: --test, --report, --size and --checkpoints are for encoders; "
            "give what to judge by as --data"
        )
    other = Path(baseline) if baseline else None
    spoilt = (other, robustness_images, epsilon / 255, seed) if robustness else None
    _evaluate_model(Path(model), data, limit, per_image, json_path, spoilt)


def _evaluate_model(
    model: Path,
    data: str,
    limit: int | None,
    per_image: Path | None,
    json_path: Path | None,
    robustness: tuple[Path | None, int | None, float, int] | None,
) -> None:
    """Judges a bundle or a fine-tuned run; ``robustness`` as of `robustness_of`, if asked for."""
    from distill.evaluation.per_image import FILE_NAME, write_per_image
    from distill.evaluation.running import is_run

    run = is_run(model)
    figures, results = _judge(model, data, limit)
    written = per_image or (model / FILE_NAME if run else None)
    if written is not None:
        write_per_image(written, results)
    console.print_json(json.dumps(figures))
    if robustness:
        figures["robustness"] = robustness_of(model, data, *robustness)
        show_robustness(figures["robustness"])
    then = f"fieldsight-run predict {model} SOURCE --out DIR"
    if run:
        then = f"fieldsight-distill compare OTHER {model}"
    finish(json_path, figures, [written] if written else [], then)


def _judge(model: Path, data: str, limit: int | None) -> tuple[dict[str, Any], PerImage]:
    """Figures of a run or a bundle, and its results image by image."""
    from distill.evaluation.recording import judge
    from distill.evaluation.running import is_run

    if is_run(model):
        from distill.classification import open_classes
        from distill.evaluation.classified import is_classifier, judge_classifier

        if is_classifier(model):
            return judge_classifier(model, *open_classes(data, "val"), data, limit)
    return judge(opened_model(model), open_data(data, "val"), limit)
