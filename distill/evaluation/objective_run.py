"""The whole objective of a run of ``pretrain``, heads and prototypes included."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import ValidationError

from distill.encoders import Encoder, EncoderSpec
from distill.objectives.protocol import Objective, objective
from distill.pretraining import read_options
from distill.settings import PretrainSettings
from edge_runtime.errors import InputError


def open_objective(run: Path) -> tuple[Objective, PretrainSettings]:
    """Rebuilds what ``pretrain`` trained in a folder, in evaluation mode.

    ``encoder.safetensors`` has the trunk alone; heads and prototypes are in ``checkpoint.pt``.

    Raises:
        InputError: it is no run of ``pretrain``, or its checkpoint is missing, broken or of another
            method or trunk.
    """
    try:
        config = json.loads((run / "config.json").read_text())
        settings = PretrainSettings.model_validate(config["settings"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(
            f"{run} is not a run folder of pretrain: config.json: {error}; give what --out was"
        ) from error
    method = objective(settings.method)
    encoder = Encoder(EncoderSpec(settings.encoder, settings.encoder_args))
    built = method(encoder, read_options(method, settings.options))
    path = run / "checkpoint.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        built.load_state_dict(state["module"])
    except FileNotFoundError as error:
        raise InputError(
            f"{path} not found; it holds the prototypes, which encoder.safetensors does not"
        ) from error
    except Exception as error:
        raise InputError(
            f"{path} is not the checkpoint of {settings.method} with {settings.encoder} "
            f"({type(error).__name__}: {error}); train again"
        ) from error
    return built.eval(), settings
