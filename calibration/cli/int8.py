"""`fieldsight-calibrate int8` and `sensitivity`: INT8 within a budget, and where it hurts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calibration.cli.app import app
from edge_runtime import terminal
from edge_runtime.bundle import open_bundle
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import RefusedError
from edge_runtime.terminal import BundlePath, JsonFile

if TYPE_CHECKING:
    from rich.progress import Progress

    from calibration.int8 import Outcome
    from calibration.study import Stage

Data = Annotated[
    str, typer.Option(help="Unlabelled frames from where it works: dataset.yaml, folder or video")
]
Val = Annotated[
    str | None,
    typer.Option(help="Labelled dataset.yaml:SPLIT to judge by; agreement with FP32 if not given"),
]
Budget = Annotated[
    float | None,
    typer.Option(min=0, help="Points that may be lost; 1.0 of mIoU or AP@.5, 5.0 of agreement"),
]
Frames = Annotated[int, typer.Option(help="Frames to calibrate on, 16 to 512")]
Force = Annotated[bool, typer.Option(help="Calibrate on frames far from the training domain")]
Seed = Annotated[int, typer.Option(help="Of the thinning out of long sources")]


def _stages(progress: Progress) -> Stage:
    """A bar for each stage."""

    def stage(description: str, total: int | None) -> Any:
        bar = progress.add_task(description, total=total)
        return lambda steps=1: progress.advance(bar, steps)

    return stage


@app.command(
    epilog="Example: `fieldsight-calibrate int8 my.bundle --data recordings/ "
    "--val my/dataset.yaml:val`"
)
def int8(
    bundle: BundlePath,
    data: Data,
    val: Val = None,
    budget: Budget = None,
    frames: Frames = 256,
    calibrator: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, such as minmax or modelopt-max; repeatable"),
    ] = None,
    cpu: Annotated[bool, typer.Option(help="Make the file for CPUs, too")] = True,
    half: Annotated[
        bool, typer.Option(help="What stays in float is FP16 where that is safe, else FP32")
    ] = True,
    force: Force = False,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Quantise a bundle's network for TensorRT and for CPUs, and keep what is worth it.

    Layers that INT8 hurts stay in float, most sensitive first, until the loss is within the budget.
    A file that cannot keep it, or gains nothing, is refused (exit code 3), and the bundle says so.
    """
    from calibration.int8 import calibrate
    from calibration.quantization import DEFAULT_CALIBRATORS
    from calibration.study import open_study

    opened = open_bundle(bundle)
    labelled = load_dataset(val) if val else None
    with terminal.progress_bar() as progress:
        stage = _stages(progress)
        study = open_study(opened, data, labelled, frames, force, seed, stage)
        outcomes = calibrate(study, budget, calibrator or DEFAULT_CALIBRATORS, cpu, half, stage)
    for title, outcome in outcomes.items():
        _show(title, outcome)
    _write(opened.path, outcomes, json_file)


def _show(title: str, outcome: Outcome) -> None:
    table = terminal.table_of(title)
    for name, value in terminal.flat(outcome.summary()):
        table.add_row(name, value)
    terminal.console.print(table)


def _write(path: Path, outcomes: dict[str, Outcome], json_file: Path | None) -> None:
    from calibration.int8 import store

    main = outcomes["int8"]
    figures = {**main.as_dict(), "latency_ratio": None}
    if "int8-cpu" in outcomes:
        figures["cpu"] = outcomes["int8-cpu"].as_dict()
        figures["latency_ratio"] = figures["cpu"].get("latency_ratio")
    written = store(open_bundle(path), outcomes)
    terminal.write_json(json_file, figures)
    terminal.wrote(
        *(written.file(name) for name in sorted(written.manifest.files) if "int8" in name)
    )
    terminal.wrote(written.file("calibration.json"))
    if not main.accepted:
        raise RefusedError(f"{path}: no INT8 file for TensorRT: {main.reason}")
    terminal.next_command("fieldsight-run", "build", path, "--check")


@app.command(
    epilog="Example: `fieldsight-calibrate sensitivity my.bundle --data recordings/ "
    "--val my/dataset.yaml:val --out out/sensitivity`"
)
def sensitivity(
    bundle: BundlePath,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for sensitivity.json and sensitivity.png")],
    val: Val = None,
    frames: Frames = 64,
    calibrator: Annotated[str, typer.Option(help="How ranges are found")] = "percentile-99.999",
    force: Force = False,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Quantise each layer alone and rank what that costs. The bundle is not changed."""
    from calibration.int8 import find_ranges, rank_layers
    from calibration.plots import plot_sensitivity
    from calibration.study import open_study

    opened = open_bundle(bundle)
    labelled = load_dataset(val) if val else None
    with terminal.progress_bar() as progress:
        stage = _stages(progress)
        study = open_study(opened, data, labelled, frames, force, seed, stage)
        tick = stage(f"calibrating: {calibrator}", len(study.frames))
        quantise = find_ranges(study, calibrator, tick)
        ranking = rank_layers(study, quantise, stage)
    table = terminal.table_of(
        f"{opened.manifest.name}: layers by what INT8 costs, in points of {study.judge.kind}",
        "layer",
        "operator",
        "multiply-adds",
        "drop",
        "disagreement",
    )
    for row in ranking[:20]:
        layer = row.layer
        macs = f"{layer.macs / 1e6:.1f} M" if layer.macs else ""
        figures = f"{row.drop:.2f}", f"{row.disagreement:.2f}"
        table.add_row(layer.name, layer.operator, macs, *figures)
    terminal.console.print(table)
    figures_ = {"judged_by": study.judge.kind, "layers": [row.as_dict() for row in ranking]}
    terminal.write_json(out / "sensitivity.json", figures_)
    plot_sensitivity(ranking, study.judge.kind, out / "sensitivity.png")
    terminal.wrote(out / "sensitivity.png")
    terminal.write_json(json_file, figures_)
    terminal.next_command("fieldsight-calibrate", "int8", bundle, "--data", data)
