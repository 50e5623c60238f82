"""`fieldsight-calibrate camera`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from calibration.camera import (
    MODELS,
    Calibration,
    calibrate,
    figures,
    gather,
    parse_board,
    write_camera_info,
    write_report,
)
from calibration.camera.camera_info import check_name
from calibration.cli.app import app
from edge_runtime.bundle import Bundle, open_bundle, update_bundle
from edge_runtime.errors import InputError
from edge_runtime.terminal import (
    JsonFile,
    console,
    errors,
    next_command,
    progress_bar,
    table_of,
    write_json,
    wrote,
)


@app.command(
    epilog="Example: `fieldsight-calibrate camera 'calib/*.jpg' --board chessboard:9x6:0.025 "
    "--out camera --bundle my.bundle`"
)
def camera(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Images, folders, patterns such as 'calib/*.png', or videos"
        ),
    ],
    board: Annotated[
        str,
        typer.Option(
            help="chessboard:COLSxROWS:SQUARE (inner corners, metres) or "
            "charuco:COLSxROWS:SQUARE:MARKER:DICT (squares, metres)"
        ),
    ],
    model: Annotated[str, typer.Option(help=f"Lens model: {', '.join(MODELS)}")] = "plumb_bob",
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Store the camera in this bundle")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write camera_info.yaml and report.html")
    ] = None,
    name: Annotated[str, typer.Option(help="Camera's name in camera_info.yaml")] = "camera",
    json_file: JsonFile = None,
) -> None:
    """Calibrate a camera from pictures of a board: intrinsics, and how far to trust them."""
    target = open_bundle(bundle) if bundle else None
    pattern = parse_board(board)
    check_name(name)
    if model not in MODELS:
        raise InputError(f"lens model '{model}' is unknown; expected {', '.join(MODELS)}")
    with progress_bar() as bar:
        gathered = gather(images, pattern, _advance(bar, "searching"))
        result = calibrate(gathered, model, _advance(bar, "cross-validating"))
    found = figures(result, pattern.spec)
    _show(found)
    if out is not None:
        write_camera_info(out / "camera_info.yaml", result.camera, name)
        write_report(out / "report.html", result, pattern.spec)
        wrote(out / "camera_info.yaml", out / "report.html")
    if target is not None:
        _store(target, result)
    write_json(json_file, found)
    if target is not None:
        next_command("fieldsight-run", "predict", target.path, images[0])
    else:
        command = ["fieldsight-calibrate", "camera", *images, "--board", pattern.spec]
        next_command(*command, "--model", model, "--bundle", "NAME.bundle")


def _advance(bar: Any, title: str) -> Callable[[int, int | None], None]:
    task = bar.add_task(title, total=None)

    def advance(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total)

    return advance


def _show(found: dict[str, Any]) -> None:
    """Print the figures; what each view did is in the report and the JSON."""
    (fx, _, cx), (_, fy, cy), _ = found["camera_matrix"]
    values = {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
    deviation, straight = found["standard_deviation_px"], found["straightness"]
    rows = table_of(f"Camera, {found['model']}")
    rows.add_row("views used", f"{found['views_used']} of {found['images']} images")
    rows.add_row("error", f"{found['rms_px']:.3f} px RMS")
    rows.add_row("error, cross-validated", f"{found['cross_validated_rms_px']:.3f} px RMS")
    for key, value in values.items():
        rows.add_row(key, f"{value:.2f} ± {deviation[key]:.2f} px")
    rows.add_row("distortion", ", ".join(f"{value:.5g}" for value in found["distortion"]))
    rows.add_row(
        "off the straight line",
        f"{straight['before_px']:.3f} px raw, {straight['after_px']:.3f} px undistorted",
    )
    rows.add_row("coverage", f"{found['coverage']:.0%} of the picture")
    console.print(rows)
    for image, entry in found["rejected"].items():
        text = f"left out: {image} ({entry['kind'].replace('_', ' ')}): {entry['reason']}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for text in found["warnings"]:
        errors.print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)


def _store(bundle: Bundle, result: Calibration) -> None:
    """Put the camera into a bundle's manifest, atomically."""
    before = bundle.manifest.camera
    update_bundle(bundle, {}, {"camera": result.camera.model_dump()})
    wrote(bundle.path)
    if before is not None:
        console.print(
            f"replaced the camera it had ({before.model}, {before.width}x{before.height})",
            highlight=False,
        )
