"""Checkpoints that a killed run resumes from exactly, alike for one process, DDP and FSDP."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from edge_runtime.errors import InputError

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def gathered_weights(module: nn.Module) -> dict[str, Tensor]:
    """Whole weights by name; every process calls it, the first one gets them where sharded."""
    if isinstance(module, FSDPModule):
        return get_model_state_dict(module, options=_FULL)
    return module.state_dict()


def gathered_optimizer(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's state; every process calls it, the first one gets it where sharded."""
    if isinstance(module, FSDPModule):
        return get_optimizer_state_dict(module, optimizer, options=_FULL)
    return optimizer.state_dict()


def restore(module: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Gives back what ``gathered_weights`` and ``gathered_optimizer`` gave, on every process."""
    if isinstance(module, FSDPModule):
        full = StateDictOptions(full_state_dict=True)
        set_model_state_dict(module, state["module"], options=full)
        set_optimizer_state_dict(module, optimizer, state["optimizer"], options=full)
        return
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes atomically, streaming, as a checkpoint may be larger than memory has room for twice.

    Weights and plain values only, so that it can be read with ``weights_only=True``.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of a run with this identity.

    Raises:
        InputError: it cannot be read, or is of another run; says what differs.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = json.loads(state["identity"])
        missing = {"module", "optimizer", "step"} - set(state)
        if missing:
            raise KeyError(sorted(missing)[0])
    except Exception as error:
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {error}); "
            "delete it to begin again, or give another --out"
        ) from error
    differing = list(_differences(found, json.loads(json.dumps(identity)), ""))
    if differing:
        raise InputError(
            f"{path} belongs to a run with other settings: {'; '.join(differing)}. "
            "Give the same settings, or another --out"
        )
    return state


def _differences(found: Any, wanted: Any, place: str) -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        lines = []
        for key in dict.fromkeys([*found, *wanted]):
            inner = f"{place}.{key}" if place else str(key)
            lines += _differences(found.get(key), wanted.get(key), inner)
        return lines
    return [] if found == wanted else [f"{place} was {found!r}, is {wanted!r}"]
