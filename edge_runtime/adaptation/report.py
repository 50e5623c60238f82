"""One self-contained page about a replay: drift and accuracy over time, events, pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np

from edge_runtime.adaptation.replay import Trace
from edge_runtime.errors import FieldsightError

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td{padding:.2em 1em .2em 0;border-bottom:1px solid #ddd}
.pair{display:grid;grid-template-columns:repeat(3,1fr);gap:6px;margin-bottom:6px}
.pair img{width:100%;display:block}.pair div{font-size:13px;color:#555}
svg text{font:11px system-ui,sans-serif;fill:#444}.note{color:#555}
"""
_WIDTH, _HEIGHT, _LEFT, _TOP = 940, 200, 46, 14
_COLOURS = ("#1b6ca8", "#c8553d", "#6a994e", "#8e6c8a")
_MARKS = {"promoted": "#2a9d3f", "recalled": "#2a9d3f", "home": "#1b6ca8", "alarm": "#c81d25"}
_MOST_POINTS = 1000


def page(
    title: str,
    facts: dict[str, str],
    trace: Trace,
    threshold: float,
    curves: dict[str, Sequence[float]],
    pictures: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    note: str = "",
) -> str:
    """The page as HTML.

    Args:
        title: Its heading.
        facts: Names and values of the table at its top.
        trace: What happened.
        threshold: Of drift.
        curves: Accuracy by frame, by name; may be empty.
        pictures: (caption, frame, drawn as trained, drawn as adapted), uint8 [H, W, 3] RGB.
        note: Said where the pictures would be.
    """
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts.items())
    names = list(dict.fromkeys(name for points in trace.per_point for name in points))
    points = {n: [p.get(n, float("nan")) for p in trace.per_point] for n in names}
    events = "".join(
        f"<tr><td>{index}</td><td>{escape(what)}</td></tr>" for index, what in _merged(trace.events)
    )
    accuracy = ""
    if curves:
        smooth = {name: _smoothed(values) for name, values in curves.items()}
        accuracy = f"<h2>Mean IoU by frame</h2>{_chart(smooth, trace)}"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>
<style>{_STYLE}</style><h1>{escape(title)}</h1><table>{rows}</table>
<h2>Drift</h2>
<p class="note">Distance of the first adapter point's statistics from the training domain's. Dashed:
the threshold. Shaded: an adapter is in use.</p>
{_chart({"drift": trace.drift}, trace, threshold)}
<p class="note">By adapter point: those after the first show what the adapter leaves.</p>
{_chart(points, trace)}
{accuracy}
<h2>Events</h2><table>{events or "<tr><td>none</td></tr>"}</table>
<h2>Pictures</h2>{_pictures(pictures)}<p class="note">{escape(note)}</p></html>
"""


def _merged(events: list[tuple[int, str]]) -> list[tuple[str, str]]:
    """Events of the same kind on consecutive frames as one line."""
    lines: list[tuple[int, int, str]] = []
    for index, what in events:
        if lines and lines[-1][2] == what and index - lines[-1][1] <= 1:
            lines[-1] = (lines[-1][0], index, what)
        else:
            lines.append((index, index, what))
    return [(str(a) if a == b else f"{a} to {b}", what) for a, b, what in lines[:200]]


def _smoothed(values: Sequence[float], width: int = 9) -> list[float]:
    padded = np.pad(np.asarray(values, float), width // 2, mode="edge")
    return [float(np.nanmean(padded[i : i + width])) for i in range(len(values))]


def _chart(
    series: Mapping[str, Sequence[float]], trace: Trace, threshold: float | None = None
) -> str:
    """Lines over frames as SVG, with the adapted stretches shaded and the events marked."""
    count = max([len(v) for v in series.values()] or [0])
    known = [v for values in series.values() for v in values if np.isfinite(v)]
    if not known or count < 2:
        return "<p>nothing to draw</p>"
    top = max([*known, (threshold or 0) * 1.2]) or 1.0
    low = min(0.0, *known)

    def x(index: float) -> float:
        return _LEFT + index / (count - 1) * (_WIDTH - _LEFT - 10)

    def y(value: float) -> float:
        return _TOP + (top - value) / (top - low) * (_HEIGHT - 2 * _TOP)

    parts = [_shade(trace.adapted, x), _marks(trace, x)]
    for value in (low, (low + top) / 2, top):
        parts.append(
            f'<text x="2" y="{y(value) + 4:.1f}">{value:.3g}</text><line x1="{_LEFT}" '
            f'x2="{_WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#eee"/>'
        )
    if threshold is not None:
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y(threshold):.1f}" y2="{y(threshold):.1f}" '
            'stroke="#888" stroke-dasharray="5 4"/>'
        )
    step = max(1, count // _MOST_POINTS)
    for place, (name, values) in enumerate(series.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        line = " ".join(
            f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values) if i % step == 0 and v == v
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" points="{line}"/>')
        parts.append(
            f'<text x="{_LEFT + 8 + 130 * place}" y="{_HEIGHT + 12}" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT + 18}">{"".join(parts)}</svg>'


def _shade(adapted: list[bool], x: Any) -> str:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(adapted, int), [0]])))
    return "".join(
        f'<rect x="{x(a):.1f}" width="{max(x(b - 1) - x(a), 1):.1f}" y="{_TOP}" '
        f'height="{_HEIGHT - 2 * _TOP}" fill="#f3efe2"/>'
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    )


def _marks(trace: Trace, x: Any) -> str:
    return "".join(
        f'<line x1="{x(i):.1f}" x2="{x(i):.1f}" y1="{_TOP}" y2="{_HEIGHT - _TOP}" '
        f'stroke="{_MARKS[what]}"><title>{i}: {what}</title></line>'
        for i, what in trace.events
        if what in _MARKS
    )


def _pictures(pictures: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> str:
    rows = []
    for caption, *images in pictures:
        heads = caption, "as trained", "adapted"
        cells = zip(heads, images, strict=True)
        rows.append(
            '<div class="pair">'
            + "".join(f'<div><img alt="{h}" src="{_uri(i)}">{escape(h)}</div>' for h, i in cells)
            + "</div>"
        )
    return "".join(rows)


def _uri(image: np.ndarray) -> str:
    """A picture of at most 480 pixels width, in the page itself."""
    scale = min(1.0, 480 / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    good, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    if not good:
        raise FieldsightError("a picture of the report could not be encoded")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
