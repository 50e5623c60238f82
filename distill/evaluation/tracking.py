"""Several checkpoints judged alike: which figures follow the probe's error from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.images import Images
from distill.evaluation.judging import JudgeOptions, judge_encoder
from distill.evaluation.opening import WEIGHTS, OpenedEncoder, open_encoder
from distill.evaluation.separability import rank_correlation
from edge_runtime.errors import InputError
from edge_runtime.files import sha256

# Where each figure lies among those of `judge_encoder`.
FIGURES = {
    "overlap": ("labels", "overlap"),
    "inter-class aSTD": ("labels", "inter_astd"),
    "intra-class aSTD": ("labels", "intra_astd"),
    "RankMe": ("quality", "rankme"),
    "LiDAR": ("quality", "lidar"),
    "alpha-ReQ": ("quality", "alpha_req"),
    "alignment": ("quality", "alignment"),
    "uniformity": ("quality", "uniformity"),
    "spread": ("quality", "spread"),
}
_LEAST = 4


def checkpoints_of(run: Path) -> list[str]:
    """Encoder arguments of a run's kept epochs (``keep_encoders=true``) and of its end.

    Raises:
        InputError: it kept none.
    """
    files = sorted((run / "encoders").glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{run} kept no weights of earlier epochs; pretrain with keep_encoders=true, and a "
            "small probe_every="
        )
    last = run / WEIGHTS
    # The last epoch is kept under both names; counted twice it would feign agreement.
    end = [str(run)] if last.is_file() and sha256(last) != sha256(files[-1]) else []
    return [f"{run}@{file.relative_to(run)}" for file in files] + end


def track(
    opened: OpenedEncoder, data: Images, test: Images | None, options: JudgeOptions
) -> dict[str, Any]:
    """Judges all checkpoints of an encoder's run.

    Returns:
        ``judged``: figures of each, in order; ``correlation``: see `correlations`.

    Raises:
        InputError: it is no run, kept too few epochs, or the data has no classes.
    """
    if opened.run is None:
        raise InputError(f"{opened.title} is no run of pretrain, so it has no earlier epochs")
    judged = judge_all(checkpoints_of(opened.run), data, test, options)
    return {"judged": judged, "correlation": correlations(judged, options.seed)}


def judge_all(
    specs: Sequence[str], data: Images, test: Images | None, options: JudgeOptions
) -> list[dict[str, Any]]:
    """Figures of each encoder argument, on the same images.

    Raises:
        InputError: one cannot be opened, or there are no classes.
    """
    found = []
    for spec in specs:
        figures = judge_encoder(open_encoder(spec, options.seed), data, test, options).figures
        if "labels" not in figures:
            raise InputError("checkpoints are ranked by their probe; the data needs classes")
        found.append(figures)
    return found


def correlations(judged: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, dict[str, float]]:
    """Rank correlation of each figure with the linear probe's error; see `rank_correlation`.

    A figure that some checkpoint lacks, or that is the same for all, is left out.

    Raises:
        InputError: fewer than four checkpoints, or all of one error.
    """
    errors = [float(f["labels"]["linear_error"]) for f in judged]
    if len(errors) < _LEAST or np.ptp(errors) == 0:
        raise InputError(
            f"{len(errors)} checkpoints, of {len(set(errors))} different errors; a rank "
            f"correlation needs {_LEAST} or more of different quality"
        )
    found = {}
    for name, (section, key) in FIGURES.items():
        values = [f[section].get(key) for f in judged]
        if None not in values and np.isfinite(values).all() and np.ptp(values) > 0:
            found[name] = asdict(rank_correlation(values, errors, seed))
    return found
