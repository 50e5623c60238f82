"""A dataset of any source by the argument that names it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edge_runtime.datasets import Dataset
from edge_runtime.datasets import open_data as open_files


def open_data(spec: str, split: str) -> Dataset:
    """A dataset of files, rendering ``synthetic:SPEC`` first.

    Args:
        split: the one meant where ``spec`` names none.
    """
    if not spec.startswith("synthetic:"):
        return open_files(spec, split)
    from distill.data.synthetic import render_dataset

    name, _, asked = spec.removeprefix("synthetic:").partition(":")
    folder = Path(tempfile.gettempdir()) / "fieldsight-synthetic" / name.replace("/", "_")
    path = folder / "dataset.yaml"
    if not path.is_file():
        path = render_dataset(name, folder)
    return open_files(f"{path}:{asked or split}", split)
