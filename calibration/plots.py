"""Pictures of what calibration found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from calibration.sensitivity import Damage
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_bytes

_SHOWN = 30


def plot_sensitivity(ranking: Sequence[Damage], kind: str, out: Path) -> None:
    """Bars of the layers that INT8 costs most, most sensitive on top, as PNG.

    Args:
        ranking: From `sensitivity.measure`.
        kind: What the drop is of: "labels" or "agreement".
        out: File to write.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the plot needs matplotlib: pip install 'fieldsight[calibrate]'") from None
    rows = list(ranking[:_SHOWN])
    figure = Figure(figsize=(9, 0.24 * len(rows) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh(places, [row.disagreement for row in rows], color="#c9d6e8", label="outputs changed")
    what = "worst of mIoU and AP@.5 lost" if kind == "labels" else "agreement lost"
    axes.barh(places, [row.drop for row in rows], height=0.4, color="#b3362b", label=what)
    axes.set_yticks(places, [row.layer.name for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("points, when this layer alone is quantised")
    axes.legend(loc="lower right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    atomic_write_bytes(out, buffer.getvalue())
