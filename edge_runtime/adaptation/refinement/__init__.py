"""Refinement: gradient steps on the adapter alone, without labels, where torch is installed.

Each method has a file of its own, which is imported when the method is asked for: a robot that only
aligns never loads torch.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from edge_runtime.adaptation.strategies import Strategy, register_strategy
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError

METHODS = {
    "align+rehearsal": "rehearsal",
    "align+ssl": "consistency",
    "cotta": "cotta",
    "eata": "eata",
    "roid": "roid",
    "rotta": "rotta",
    "sar": "sar",
    "tent": "tent",
}


def _create(module: str, bundle: Bundle, **options: Any) -> Strategy:
    try:
        found = importlib.import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("edge_runtime."):
            raise
        raise InputError(
            f"gradient steps need {error.name}: pip install 'fieldsight[adapt]', or use 'align'"
        ) from None
    return found.create(bundle, **options)


for _name, _module in METHODS.items():
    register_strategy(_name)(partial(_create, _module))
