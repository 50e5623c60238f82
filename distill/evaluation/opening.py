"""The encoder that a command line names: a timm model, weights for one, or a run of pretrain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from distill.encoders import RUN_WEIGHTS, Encoder, EncoderSpec, run_settings
from distill.teachers import load_weights
from edge_runtime.errors import InputError

RANDOM = "random"
WEIGHTS = RUN_WEIGHTS


@dataclass(frozen=True)
class OpenedEncoder:
    """An encoder to judge.

    Attributes:
        title: what it was opened from.
        encoder: in evaluation mode.
        size: (height, width) it was trained at.
        method: of its pretraining, where it is a run.
        run: the run's folder.
    """

    title: str
    encoder: Encoder
    size: tuple[int, int]
    method: str | None = None
    run: Path | None = None


def open_encoder(spec: str, seed: int = 0) -> OpenedEncoder:
    """Opens ``NAME`` (weights of the hub), ``NAME@FILE.safetensors`` or a run folder.

    ``RUN@FILE`` takes the run's trunk with other weights, such as those of an earlier epoch.
    ``NAME@random`` and ``RUN@random`` are the same trunk with random weights: the baseline that a
    trained one has to beat.

    Args:
        spec: as given on the command line.
        seed: of random weights.

    Raises:
        InputError: no such model, no such run, weights of another architecture.
    """
    name, _, source = spec.rpartition("@") if "@" in spec else (spec, "", "")
    run = Path(name)
    settings: dict[str, Any] | None = None
    if (run / "config.json").is_file() or run.is_dir():
        settings = run_settings(run)
        name = settings["encoder"]
        arguments = dict(settings.get("encoder_args") or {})
    elif timm.is_model(name.split(".")[0].removeprefix("hf-hub:")) or "/" in name:
        arguments = {}
    else:
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise InputError(
            f"{spec!r} is neither a run folder nor a model of timm; near it: "
            f"{', '.join(close) or 'none'}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder(EncoderSpec(name, arguments), hub=settings is None and not source)
    weights = _weights_file(run if settings else None, source)
    if weights is not None:
        load_weights(encoder.model, weights, f"encoder {name}")
    size = (
        tuple(settings["size"])
        if settings
        else tuple(encoder.model.pretrained_cfg["input_size"][1:])
    )
    method = settings.get("method") if settings and source != RANDOM else None
    kept = run if settings and source != RANDOM else None
    return OpenedEncoder(spec, encoder.eval(), (int(size[0]), int(size[1])), method, kept)


def _weights_file(run: Path | None, source: str) -> Path | None:
    """The file to load; None for random weights or the hub's."""
    if source == RANDOM:
        return None
    if run is not None and not source:
        return run / WEIGHTS
    if not source:
        return None
    places = [Path(source), *([run / source] if run else [])]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"weights {source} not found{f' there or in {run}' if run else ''}; give an existing "
        f".safetensors, or {RANDOM}"
    )
