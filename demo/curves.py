"""Curves of a run's metrics.csv as inline SVG."""

from __future__ import annotations

import csv
from html import escape
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 340, 180, 42
Series = list[tuple[float, float]]


def read_metrics(path: Path) -> dict[str, Series]:
    """Columns of a metrics.csv as (epoch, value) lists; empty cells are left out."""
    series: dict[str, Series] = {}
    if not path.is_file():
        return series
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            x = float(row.get("epoch") or row.get("step") or 0)
            for name, value in row.items():
                if name and name not in ("step", "epoch") and value not in (None, ""):
                    series.setdefault(name, []).append((x, float(value)))
    return {name: by_epoch(points) for name, points in series.items()}


def by_epoch(points: Series) -> Series:
    """The mean of each epoch's values."""
    groups: dict[float, list[float]] = {}
    for x, y in points:
        groups.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(groups.items())]


def svg(title: str, points: Series) -> str:
    """One curve with its first, last and extreme values written at the axes."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(x: float, y: float) -> str:
        across = (x - left) / ((right - left) or 1)
        up = (y - low) / ((high - low) or 1)
        return f"{MARGIN + across * width:.1f},{HEIGHT - MARGIN - up * height:.1f}"

    line = " ".join(place(x, y) for x, y in points)
    dots = "".join(
        '<circle cx="{}" cy="{}" r="2.5" fill="#0b6e6e"/>'.format(*place(x, y).split(","))
        for x, y in (points if len(points) <= 12 else points[-1:])
    )
    bottom = HEIGHT - MARGIN
    return f"""<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">
<text x="{MARGIN}" y="20" class="t">{escape(title)}: {ys[-1]:.4g} at the end</text>
<path d="M{MARGIN},{MARGIN} V{bottom} H{WIDTH - MARGIN}" fill="none" stroke="#999"/>
<polyline points="{line}" fill="none" stroke="#0b6e6e" stroke-width="2"/>{dots}
<text x="{MARGIN - 4}" y="{MARGIN + 4}" text-anchor="end">{high:.3g}</text>
<text x="{MARGIN - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>
<text x="{MARGIN}" y="{bottom + 16}">{left:g}</text>
<text x="{WIDTH - MARGIN}" y="{bottom + 16}" text-anchor="end">epoch {right:g}</text>
</svg>"""


def curves(run: Path, leave_out: tuple[str, ...] = ("lr", "seconds", "eta")) -> str:
    """All curves of a run folder; those that say nothing (one point, constants) left out."""
    drawings = [
        svg(name, points)
        for name, points in read_metrics(run / "metrics.csv").items()
        if len(points) > 1 and not any(word in name for word in leave_out)
    ]
    return "\n".join(drawings) or "<p>No curve: the run wrote no metrics.</p>"
