"""Pictures of a calibration: coverage and errors as SVG, a view before and after as JPEG."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from calibration.camera.selection import GRID
from calibration.camera.straightness import lines_of
from calibration.camera.views import View
from edge_runtime.geometry import Geometry
from edge_runtime.lens import Lens
from edge_runtime.manifest import CameraSpec

_HUES = 14  # colours that views take in turn
_SHIFT = 4  # bits of sub-pixels in which OpenCV draws


def coverage_svg(views: Sequence[View], size: tuple[int, int]) -> str:
    """Every corner in the picture's frame, a colour a view; darker cells hold more views.

    Args:
        views: Those used.
        size: (height, width) of the pictures.
    """
    height, width = size
    cell = width / GRID[0], height / GRID[1]
    counts: Counter[tuple[int, int]] = Counter()
    for view in views:
        at = np.clip(((view.pixels + 0.5) / cell).astype(int), 0, np.array(GRID) - 1)
        counts.update({(int(x), int(y)) for x, y in at})
    most = max(counts.values(), default=1)
    boxes = [
        f'<rect x="{x * cell[0]:.1f}" y="{y * cell[1]:.1f}" width="{cell[0]:.1f}" '
        f'height="{cell[1]:.1f}" fill="#2a6" fill-opacity="{0.08 + 0.32 * count / most:.2f}"/>'
        for (x, y), count in sorted(counts.items())
    ]
    radius = width / 320
    dots = [
        f'<g fill="hsl({360 * (index % _HUES) / _HUES:.0f} 70% 40%)"><title>{escape(view.name)}'
        "</title>"
        + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>' for x, y in view.pixels)
        + "</g>"
        for index, view in enumerate(views)
    ]
    frame = f'<rect width="{width}" height="{height}" fill="none" stroke="#888"/>'
    return (
        f'<svg class="wide" viewBox="-2 -2 {width + 4} {height + 4}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(boxes)}{frame}{"".join(dots)}</svg>'
    )


def errors_svg(names: Sequence[str], errors: Sequence[float], rms: float) -> str:
    """A bar for each view's RMS error in pixels, with the whole's as a line.

    Args:
        names: Of the views.
        errors: Of each, in pixels.
        rms: Of all corners.
    """
    step, left, width = 18, 150, 640
    scale = (width - left - 60) / max(*errors, rms, 1e-9)
    bars = "".join(
        f'<text x="{left - 6}" y="{index * step + 13}" text-anchor="end">{escape(name[-22:])}'
        f'</text><rect x="{left}" y="{index * step + 3}" width="{error * scale:.1f}" height="12" '
        f'fill="#38c"/><text x="{left + error * scale + 5:.1f}" y="{index * step + 13}">'
        f"{error:.3f}</text>"
        for index, (name, error) in enumerate(zip(names, errors, strict=True))
    )
    height = step * len(names) + 20
    at = left + rms * scale
    return (
        f'<svg class="wide" viewBox="0 0 {width} {height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11">{bars}'
        f'<path d="M{at:.1f} 0V{height - 14}" stroke="#d33" stroke-dasharray="3 3"/>'
        f'<text x="{at:.1f}" y="{height - 3}" fill="#d33" text-anchor="middle">all: {rms:.3f} px'
        "</text></svg>"
    )


def before_and_after(view: View, camera: CameraSpec) -> tuple[np.ndarray, np.ndarray]:
    """A view raw and undistorted as perception does it, each with its board's straight lines.

    Returns:
        Two uint8 [H, W, 3] RGB of the raw size: red the straight line through each row's and
        column's corners, green the corners.
    """
    size = camera.height, camera.width
    coded = np.frombuffer(view.picture, np.uint8)
    raw = cv2.cvtColor(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    flat = Geometry(size, size, "stretch", camera).to_network(raw)
    straight = Lens(camera, size).undistort(view.pixels + 0.5) - 0.5
    return _with_lines(raw, view, view.pixels), _with_lines(flat, view, straight)


def data_uri(image: np.ndarray, most: int = 1280) -> str:
    """uint8 [H, W, 3] RGB as a JPEG of at most so many pixels across, inline."""
    if image.shape[1] > most:
        size = most, round(image.shape[0] * most / image.shape[1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(coded.tobytes()).decode()}"


def _with_lines(image: np.ndarray, view: View, corners: np.ndarray) -> np.ndarray:
    drawn = image.copy()
    thick = max(1, image.shape[1] // 900)
    for line in lines_of(view):
        points = corners[line]
        if not np.isfinite(points).all():
            continue
        middle = points.mean(axis=0)
        along = np.linalg.svd(points - middle, full_matrices=False)[2][0]
        reach = (points - middle) @ along
        begin, end = (_fixed(middle + along * at * 1.06) for at in (reach.min(), reach.max()))
        cv2.line(drawn, begin, end, (235, 40, 40), thick, cv2.LINE_AA, _SHIFT)
    for point in corners[np.isfinite(corners).all(axis=1)]:
        radius = round(1.6 * thick * 2**_SHIFT)
        cv2.circle(drawn, _fixed(point), radius, (0, 220, 90), -1, cv2.LINE_AA, _SHIFT)
    return drawn


def _fixed(point: np.ndarray) -> tuple[int, int]:
    x, y = np.round(point * 2**_SHIFT).astype(int)
    return int(x), int(y)
