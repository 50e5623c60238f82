"""``fieldsight-distill``: distil, fine-tune, export and evaluate."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.settings import DistillSettings, FinetuneSettings, load_settings
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.terminal import console, run_app

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Distil large teachers into a small student."
)

Out = Annotated[Path, typer.Option(help="Folder to write the run to.")]
Config = Annotated[Path | None, typer.Option("--config", help="Recipe YAML.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as KEY=VALUE.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Student = Annotated[str, typer.Option(help="timm name of the student's trunk.")]
Encoder = Annotated[
    Path | None, typer.Option(help="Start from: a run folder, trunk .safetensors, or hub.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Resume = Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")]
Devices = Annotated[int, typer.Option(help="Processes on this machine.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]


def open_data(spec: str, split: str) -> Any:
    """A dataset of any source, rendering ``synthetic:SPEC`` first."""
    from edge_runtime.datasets import open_data as open_files

    if not spec.startswith("synthetic:"):
        return open_files(spec, split)
    from distill.data.synthetic import render_dataset

    name, _, asked = spec.removeprefix("synthetic:").partition(":")
    folder = Path(tempfile.gettempdir()) / "fieldsight-synthetic" / name.replace("/", "_")
    path = folder / "dataset.yaml"
    if not path.is_file():
        path = render_dataset(name, folder)
    return open_files(f"{path}:{asked or split}", split)


def _overrides(pairs: list[str] | None, seed: int | None) -> list[str]:
    return [*(pairs or []), *([f"seed={seed}"] if seed is not None else [])]


def _finish(json_path: Path | None, figures: dict[str, Any], wrote: list[Path], then: str) -> None:
    if json_path is not None:
        atomic_write_text(json_path, json.dumps(figures, indent=2))
        wrote = [*wrote, json_path]
    for path in wrote:
        console.print(f"wrote [bold]{path}[/bold]", soft_wrap=True)
    if then:
        console.print(f"next: {then}", soft_wrap=True, highlight=False)


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

    settings = load_settings(DistillSettings, config, _overrides(overrides, seed))
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
    _finish(
        json_path,
        summary,
        [out / "student.safetensors", out / "metrics.csv"],
        f"fieldsight-distill finetune --encoder {out} --student {student} --data DATASET --out DIR",
    )


@app.command()
def finetune(
    data: Annotated[str, typer.Option(help="Labelled dataset.yaml[:split].")],
    out: Out,
    student: Student = "mobilenetv4_conv_small",
    overrides: Overrides = None,
    config: Config = None,
    val: Annotated[str | None, typer.Option(help="Held-back dataset.yaml:split.")] = None,
    encoder: Encoder = None,
    tasks: Annotated[str, typer.Option(help="Comma-separated.")] = "segmentation,detection",
    labels: Annotated[str | None, typer.Option(help="Use only 10% or 40 of the labels.")] = None,
    pseudo_labels: Annotated[
        Path | None, typer.Option(help="Bundle of a larger student that labels the rest.")
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
    from distill.finetuning import finetune as run

    settings = load_settings(FinetuneSettings, config, _overrides(overrides, seed))
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
        [t.strip() for t in tasks.split(",") if t.strip()],
        open_data(val, "val") if val else None,
        encoder,
        extra,
        resume,
        devices,
        accelerator,
    )
    _finish(
        json_path,
        summary,
        [out / "student.safetensors", out / "metrics.csv"],
        f"fieldsight-distill export {out} --data {data} --out {out.name}.bundle",
    )


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
    json_path: Json = None,
) -> None:
    """A fine-tuned run into a bundle, checked against torch."""
    from distill.export import export as write

    shape = _parse_size(size) if size else None
    judge = open_data(evaluate_on, "val") if evaluate_on else None
    bundle, metrics = write(
        run, open_data(data, "train"), out, shape, top_k, mask_confidence, overwrite, judge
    )
    parity = metrics["parity"]
    console.print(
        f"torch against ONNX Runtime: {parity['mask_equal']:.4%} of mask pixels equal, "
        f"boxes within {parity['box_px']:.4f} px"
    )
    _finish(json_path, metrics, [bundle.path], f"fieldsight-distill evaluate {out} --data {data}")


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise InputError(f"size {text!r} is not HEIGHTxWIDTH, for instance 256x320")
    return int(parts[0]), int(parts[1])


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
    _finish(json_path, figures, [], f"fieldsight-run predict {bundle} SOURCE --out DIR")


def main() -> None:
    """Run the command line."""
    run_app(app, extra="workstation")


if __name__ == "__main__":
    main()
