"""Building blocks of a self-contained HTML page: tables, pictures, curves, a scatter plot."""

from __future__ import annotations

import base64
import colorsys
from collections.abc import Mapping, Sequence
from html import escape

import cv2
import numpy as np

from edge_runtime.errors import FieldsightError

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td{padding:.2em 1em .2em 0;border-bottom:1px solid #ddd}
.grid{display:grid;gap:6px;margin-bottom:10px}.grid img{width:100%;display:block}
.grid img.same{outline:3px solid #2a9d3f}.grid img.other{outline:3px solid #c81d25}
.grid div{font-size:12px;color:#555}.note{color:#555}
svg text{font:11px system-ui,sans-serif;fill:#444}
"""
_WIDTH, _HEIGHT, _LEFT, _TOP = 460, 170, 46, 14
_LEAST_SIDE = 96  # pixels; smaller pictures are enlarged by a whole factor


def document(title: str, body: Sequence[str]) -> str:
    """A page of parts that are HTML already."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>" + "\n".join(body) + "</html>\n"
    )


def section(heading: str, note: str, content: str) -> str:
    """A heading, a sentence about what is shown, and what is shown."""
    return f'<h2>{escape(heading)}</h2><p class="note">{escape(note)}</p>{content}'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values."""
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"


def picture(image: np.ndarray, kind: str = "", title: str = "") -> str:
    """An image, uint8 [H, W, 3] RGB, in the page itself; of at most 480 pixels width."""
    factor = max(1, -(-_LEAST_SIDE // min(image.shape[:2])))
    if factor > 1:
        shown = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    else:
        scale = min(1.0, 480 / image.shape[1])
        shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    good, data = cv2.imencode(".jpg", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
    if not good:
        raise FieldsightError("a picture of the page could not be encoded")
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    return f'<img class="{escape(kind)}" alt="{escape(title)}" title="{escape(title)}" src="{uri}">'


def grid(cells: Sequence[tuple[str, str]], columns: int) -> str:
    """Pictures with captions in columns; cells are (HTML of a picture, caption)."""
    inner = "".join(f"<div>{image}{escape(caption)}</div>" for image, caption in cells)
    return f'<div class="grid" style="grid-template-columns:repeat({columns},1fr)">{inner}</div>'


def colours(count: int) -> list[tuple[int, int, int]]:
    """Colours RGB that differ, evenly around the wheel in two brightnesses."""
    found = []
    for i in range(count):
        level = 0.85 if i % 2 == 0 else 0.6
        red, green, blue = colorsys.hsv_to_rgb(i / max(count, 1), 0.75, level)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def curve(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """One quantity over steps as SVG; what is not finite is left out."""
    points = [(s, v) for s, v in zip(steps, values, strict=True) if np.isfinite(v)]
    if len(points) < 2:
        return ""
    x, y = np.array(points).T
    low, high = float(y.min()), float(y.max())
    span = (high - low) or 1.0
    across = _LEFT + (x - x[0]) / ((x[-1] - x[0]) or 1) * (_WIDTH - _LEFT - 10)
    down = _TOP + (high - y) / span * (_HEIGHT - 2 * _TOP - 14)
    keep = np.unique(np.linspace(0, len(x) - 1, 400).astype(int))
    line = " ".join(f"{across[i]:.1f},{down[i]:.1f}" for i in keep)
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}"><text x="{_LEFT}" y="10">{escape(name)}</text>'
        f'<text x="2" y="{_TOP + 6}">{high:.3g}</text>'
        f'<text x="2" y="{_HEIGHT - _TOP - 10}">{low:.3g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{x[0]:g}</text>'
        f'<text x="{_WIDTH - 50}" y="{_HEIGHT - 4}">{x[-1]:g}</text>'
        f'<polyline fill="none" stroke="#1b6ca8" stroke-width="1.5" points="{line}"/></svg>'
    )


def scatter(points: np.ndarray, labels: np.ndarray, names: Mapping[int, str]) -> str:
    """Points [N, 2] coloured by label [N] as SVG, with a legend of the names."""
    low, high = points.min(0), points.max(0)
    placed = 10 + (points - low) / np.maximum(high - low, 1e-9) * 560
    present = sorted(set(labels.tolist()))
    palette = dict(zip(present, colours(len(present)), strict=True))
    dots = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="rgb{palette[label]}" fill-opacity=".7">'
        f"<title>{escape(names.get(label, ''))}</title></circle>"
        for (x, y), label in zip(placed, labels.tolist(), strict=True)
    )
    legend = "".join(
        f'<circle cx="600" cy="{20 + 18 * i}" r="5" fill="rgb{palette[label]}"/>'
        f'<text x="612" y="{24 + 18 * i}">{escape(names.get(label, str(label)))}</text>'
        for i, label in enumerate(present[:30])
        if names
    )
    return f'<svg width="800" height="580">{dots}{legend}</svg>'
