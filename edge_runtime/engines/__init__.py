"""One file per backend behind one protocol; `open_engine` chooses."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.manifest import TensorSpec

log = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs a bundle's network. Not thread-safe: one caller at a time."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def input_buffer(self, name: str) -> np.ndarray:
        """The engine's own memory for an input. Filling it, and passing it, saves a copy."""
        ...

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run once. The returned arrays are overwritten by the next call: copy what you keep."""
        ...

    def close(self) -> None:
        """Free the network and its memory."""
        ...


EngineFactory = Callable[[Bundle, str, int | None], Engine]
_FACTORIES: dict[str, EngineFactory] = {}
_OBSTACLES: dict[str, Callable[[], str | None]] = {}
# Modules of this package, imported when an engine is opened; "auto" takes the first that works.
_MODULES = ("tensorrt", "onnxruntime")
PRECISIONS = ("auto", "fp32", "fp16", "int8")


def register_engine(
    name: str, why_unavailable: Callable[[], str | None] = lambda: None
) -> Callable[[EngineFactory], EngineFactory]:
    """Register a backend: a callable of bundle, precision and number of threads.

    Args:
        name: What `backend` calls it.
        why_unavailable: Says what keeps it from working on this machine; None if nothing does.
    """

    def register(factory: EngineFactory) -> EngineFactory:
        _FACTORIES[name] = factory
        _OBSTACLES[name] = why_unavailable
        return factory

    return register


def open_engine(
    bundle: Bundle, backend: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """Open a bundle's network on this machine.

    Args:
        bundle: An opened bundle.
        backend: A backend's name, or "auto": TensorRT where it imports and a GPU answers, else
            ONNX Runtime. The log says which and why. A name that cannot be had is an error.
        precision: "auto", "fp32", "fp16" or "int8"; likewise.
        threads: CPU threads for one inference; the backend's own choice if None.

    Raises:
        InputError: The explicit choice cannot be met here.
    """
    for module in _MODULES:
        importlib.import_module(f"{__name__}.{module}")
    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is unknown; expected {', '.join(PRECISIONS)}")
    if backend == "auto":
        backend = _first_that_works()
    elif backend not in _FACTORIES:
        raise InputError(
            f"backend '{backend}' is not available on this machine with this version of "
            f"fieldsight; available: {', '.join(sorted(_FACTORIES))}. "
            "Use --backend auto to take what there is"
        )
    elif reason := _OBSTACLES[backend]():
        raise InputError(f"backend '{backend}' is not available on this machine: {reason}")
    return _FACTORIES[backend](bundle, precision, threads)


def _first_that_works() -> str:
    reasons: list[str] = []
    for name in _MODULES:
        reason = _OBSTACLES[name]()
        if reason is None:
            because = "; ".join(reasons) or "it works here and is the fastest"
            log.info("engine: %s, because %s", name, because)
            return name
        reasons.append(f"{name} is not available: {reason}")
    raise InputError("no backend works on this machine: " + "; ".join(reasons))


__all__ = ["PRECISIONS", "Engine", "open_engine", "register_engine"]
