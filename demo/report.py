"""Writes report.html (one self-contained page) and summary.json from a demo's folder.

python demo/report.py out/demo
"""

from __future__ import annotations

import argparse
import json
import os
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from curves import curves
from pictures import (
    data_uri,
    pca_colours,
    student_features,
    teacher_features,
    to_multiple,
    upscale,
)

from edge_runtime.bundle import open_bundle
from edge_runtime.datasets import Dataset, load_dataset
from edge_runtime.files import atomic_write_text

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
h1,h2{line-height:1.2} table{border-collapse:collapse} td,th{padding:.25em .9em .25em 0;
text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.row{display:grid;grid-template-columns:repeat(4,1fr);gap:6px;margin-bottom:6px}
.row img{width:100%;display:block} .row div{font-size:13px;color:#555}
pre{background:#f4f4f4;padding:.7em;overflow-x:auto;font-size:12.5px} svg{margin:0 8px 8px 0}
svg text{font:11px system-ui,sans-serif;fill:#444} svg .t{font-size:12.5px;font-weight:600}
"""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content, or nothing where the step that writes it did not run."""
    return json.loads(path.read_text()) if path.is_file() else {}


def overlay_of(folder: Path, stem: str, image: np.ndarray) -> np.ndarray:
    """The overlay that `predict` drew for a frame; the plain image where there is none."""
    path = folder / "overlays" / f"{stem}.jpg"
    drawn = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if drawn is not None:
        return np.asarray(cv2.cvtColor(drawn, cv2.COLOR_BGR2RGB))
    return image


def picture_rows(out: Path, facts: dict[str, Any], dataset: Dataset, count: int = 6) -> str:
    """Rows of input, teacher, student and result for frames spread over the validation split."""
    bundle = open_bundle(out / "student.bundle")
    total = len(dataset.samples)
    chosen = sorted({round(i) for i in np.linspace(0, total - 1, min(count, total))})
    images = [dataset.read(i).image for i in chosen]
    inputs = [to_multiple(image) for image in images]
    teacher = pca_colours(teacher_features(facts["teacher"], inputs))
    weights = out / "distilled" / "student.safetensors"
    student = pca_colours(student_features(bundle, weights, inputs))
    heads = "input", "teacher features", "student features, no labels seen", "boxes and masks"
    rows = ['<div class="row">' + "".join(f"<div>{h}</div>" for h in heads) + "</div>"]
    for index, image, t, s in zip(chosen, images, teacher, student, strict=True):
        drawn = overlay_of(out / "predictions", dataset.samples[index].stem, image)
        cells = image, upscale(t, image), upscale(s, image), drawn
        rows.append(
            '<div class="row">'
            + "".join(
                f'<img alt="{h}" src="{data_uri(c)}">' for h, c in zip(heads, cells, strict=True)
            )
            + "</div>"
        )
    return "\n".join(rows)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def table(values: dict[str, Any]) -> str:
    """A two-column table of figures."""
    rows = []
    for key, value in flatten(values).items():
        shown = f"{value:.4g}" if isinstance(value, float) else escape(str(value))
        rows.append(f'<tr><td>{escape(key)}</td><td class="n">{shown}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def commands(facts: dict[str, Any]) -> str:
    """The steps with their commands and times."""
    parts = []
    for step in facts["steps"]:
        body = f"skipped: {step['skipped']}" if step["skipped"] else f"$ {step['command']}"
        time = f" <small>{step['seconds']:.0f} s</small>" if step["seconds"] else ""
        parts.append(f"<h3>{escape(step['title'])}{time}</h3><pre>{escape(body)}</pre>")
    return "\n".join(parts)


def page(out: Path, facts: dict[str, Any], figures: dict[str, Any]) -> str:
    """The whole report."""
    dataset = load_dataset(f"{facts['data']}:val")
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Fieldsight demo</title>
<style>{STYLE}</style>
<h1>From unlabelled images to ROS 2 detections and masks</h1>
<p>A teacher ({escape(facts["teacher"].partition("@")[0])}, ImageNet weights) was distilled into a
{escape(facts["student"])} student that started from random weights and saw no label. Both heads
were then fine-tuned on {escape(str(facts["labels"]))} labelled images of
{escape(dataset.name)}. Everything ran on {os.cpu_count()} CPU cores in
{facts["seconds"]:.0f} seconds, seed {facts["seed"]}.</p>
<h2>What it sees</h2>
<p>Validation images. The first three principal components of the features are shown as red, green
and blue: parts that a network takes for alike have like colours. Boxes and masks come from the
exported bundle, run by the code that a robot runs.</p>
{picture_rows(out, facts, dataset)}
<h2>Figures</h2>
{table(figures)}
<h2>Distillation</h2>
{curves(out / "distilled")}
<h2>Fine-tuning</h2>
{curves(out / "finetuned")}
<h2>Every step, as a command</h2>
{commands(facts)}
</html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the demo's folder")
    out: Path = parser.parse_args().out.resolve()
    facts = read_json(out / "facts.json")
    figures = {
        "evaluation": read_json(out / "evaluation.json"),
        "benchmark": read_json(out / "benchmark.json"),
        "ros": read_json(out / "ros.json"),
    }
    atomic_write_text(out / "report.html", page(out, facts, figures))
    atomic_write_text(out / "summary.json", json.dumps({**facts, **figures}, indent=2))
    print(f"wrote {out / 'report.html'}\nwrote {out / 'summary.json'}")


if __name__ == "__main__":
    main()
