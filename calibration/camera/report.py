"""What a calibration found: figures as JSON, and `report.html`, one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera.intrinsics import Calibration
from calibration.camera.pictures import before_and_after, coverage_svg, data_uri, errors_svg
from calibration.camera.straightness import Straightness, measure
from edge_runtime.files import atomic_write_text
from edge_runtime.lens import Lens

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
h1,h2{line-height:1.2} table{border-collapse:collapse} td,th{padding:.25em .9em .25em 0;
text-align:left;border-bottom:1px solid #ddd}
.two{display:grid;grid-template-columns:1fr 1fr;gap:8px}
.two img{width:100%;display:block} svg.wide{width:100%;max-width:720px;height:auto}
.warn{background:#fff3cd;padding:.5em .8em} small{color:#666}
"""


def straightness(calibration: Calibration) -> Straightness:
    """Of all views that were used."""
    camera = calibration.camera
    return measure(calibration.views, Lens(camera, (camera.height, camera.width)))


def figures(calibration: Calibration, board: str) -> dict[str, Any]:
    """Everything that was found, for JSON. Lengths are pixels, shares 0 to 1.

    Args:
        calibration: The result.
        board: Specification of the board.
    """
    camera, straight = calibration.camera, straightness(calibration)
    rejected = [r for r in calibration.rejected if r.kind not in ("unreadable", "no_board")]
    kinds = [r.kind for r in calibration.rejected]
    deviations = (float(value) for value in calibration.fit.deviations)
    return {
        "rms_px": calibration.rms,
        "cross_validated_rms_px": calibration.cross_validated_rms,
        "views_used": len(calibration.views),
        "views_rejected": len(rejected),
        "images": calibration.pictures,
        "images_without_board": kinds.count("no_board"),
        "images_unreadable": kinds.count("unreadable"),
        "model": camera.model,
        "camera_matrix": np.reshape(camera.K, (3, 3)).tolist(),
        "distortion": list(camera.D),
        "image_size": {"width": camera.width, "height": camera.height},
        "standard_deviation_px": dict(zip(("fx", "fy", "cx", "cy"), deviations, strict=True)),
        "straightness": {
            "before_px": straight.before,
            "after_px": straight.after,
            "lines": straight.lines,
        },
        "coverage": calibration.coverage,
        "tilt_deg": calibration.tilt_deg,
        "board": board,
        "views": {
            view.name: float(error)
            for view, error in zip(calibration.views, calibration.errors, strict=True)
        },
        "rejected": {r.name: {"kind": r.kind, "reason": r.reason} for r in calibration.rejected},
        "warnings": calibration.warnings,
    }


def write_report(path: Path, calibration: Calibration, board: str) -> None:
    """Write `report.html`, atomically."""
    atomic_write_text(path, _page(calibration, figures(calibration, board)))


def _page(calibration: Calibration, found: dict[str, Any]) -> str:
    camera = calibration.camera
    size = camera.height, camera.width
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for text in calibration.warnings)
    names = [view.name for view in calibration.views]
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>Camera calibration</title>
<style>{_STYLE}</style>
<h1>Camera calibration</h1>
<p>{found["views_used"]} of {found["images"]} images, {camera.width}x{camera.height} pixels, board
{escape(found["board"])}, lens model {camera.model}.</p>
{warnings}
{_figures_table(found)}
<h2>Before and after</h2>
{_before_after(calibration, found)}
<h2>Coverage</h2>
<p>Corners of all views used, a colour a view, over {found["coverage"]:.0%} of the picture's cells.
Where there are none, the distortion is extrapolated. The board's tilts differ by up to
{found["tilt_deg"]:.0f} degrees.</p>
{coverage_svg(calibration.views, size)}
<h2>Error of each view</h2>
<p>RMS reprojection error in pixels.</p>
{errors_svg(names, calibration.errors.tolist(), calibration.rms)}
<h2>Left out</h2>
{_rejected_table(found)}
</html>
"""


def _figures_table(found: dict[str, Any]) -> str:
    (fx, _, cx), (_, fy, cy), _ = found["camera_matrix"]
    deviation = found["standard_deviation_px"]
    values = {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
    rows = [
        ("reprojection error", f"{found['rms_px']:.3f} px RMS"),
        (
            "of views left out of the fit",
            f"{found['cross_validated_rms_px']:.3f} px RMS (cross-validated)",
        ),
        *(
            (name, f"{value:.2f} &plusmn; {deviation[name]:.2f} px")
            for name, value in values.items()
        ),
        ("distortion", ", ".join(f"{value:.6g}" for value in found["distortion"])),
    ]
    body = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{body}</table><p><small>&plusmn; is one standard deviation.</small></p>"


def _before_after(calibration: Calibration, found: dict[str, Any]) -> str:
    """The view that the lens bends most, with its lines."""
    camera = calibration.camera
    lens = Lens(camera, (camera.height, camera.width))
    measured = {view.name: measure([view], lens) for view in calibration.views}
    view = max(calibration.views, key=lambda view: np.nan_to_num(measured[view.name].before))
    raw, flat = (data_uri(image) for image in before_and_after(view, camera))
    whole, one = found["straightness"], measured[view.name]
    return f"""<p>Distance of corners to the straight line through their row or column, RMS over
{whole["lines"]} lines: <b>{whole["before_px"]:.3f} px before, {whole["after_px"]:.3f} px after</b>.
In {escape(view.name)}, shown, {one.before:.3f} and {one.after:.3f} px. Red: the straight
lines; green: the corners. The right picture is what perception feeds the network, at full size.</p>
<div class="two"><img alt="before" src="{raw}"><img alt="after" src="{flat}"></div>"""


def _rejected_table(found: dict[str, Any]) -> str:
    if not found["rejected"]:
        return "<p>Nothing.</p>"
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(entry['kind'].replace('_', ' '))}</td>"
        f"<td>{escape(entry['reason'])}</td></tr>"
        for name, entry in found["rejected"].items()
    )
    return f"<table><tr><th>image<th>kind<th>why</tr>{rows}</table>"
