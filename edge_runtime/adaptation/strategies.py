"""Ways to find an adapter without labels: one protocol, one registry."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edge_runtime.adaptation.drift import Drift
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result

# Modules that register strategies, imported when one is created or listed.
_MODULES = (
    "edge_runtime.adaptation.predicted",
    "edge_runtime.adaptation.input_alignment",
    "edge_runtime.adaptation.refinement",
)


class Strategy(Protocol):
    """Watches a stream of frames and proposes adapters.

    A strategy that changes the image rather than the adapter also has ``prepare(frame)``, which
    the caller runs before perception. One that knows an adapter from the frame alone also
    has ``predict(frame)``, by which its candidates are found without a forward pass. One that
    need not see every frame of a place says so by ``known``. One that finds adapters which are no
    small steps is `Refining`, too.
    """

    name: str

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """Take one frame with what perception made of it.

        Args:
            frame: The frame.
            result: Its result; `statistics` are of the pass with the adapter last proposed, or
                with the one given to `reset`.
            drift: What the monitor makes of the frame.

        Returns:
            A candidate adapter, float32 [A], or None while there is nothing to propose.
        """
        ...

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Forget the stream; go on from `adapter` if one is given, else from the identity."""
        ...


@dataclass(frozen=True)
class Refined:
    """A candidate, float32 [A], and what its finder can already say for it, if anything."""

    adapter: np.ndarray
    merit: str | None = None


@runtime_checkable
class Refining(Protocol):
    """Looks for something better than the adapter in use, which has to pass a trial of its own."""

    def refine(self, frame: Frame, adapter: np.ndarray) -> Refined | None:
        """Take one frame of the place; a candidate, or None while there is none.

        Args:
            frame: The frame.
            adapter: float32 [A], the adapter in use.
        """
        ...

    def accepted(self, adapter: np.ndarray) -> None:
        """Go on from a candidate, float32 [A], that passed its trial."""
        ...


StrategyFactory = Callable[..., Strategy]
_FACTORIES: dict[str, StrategyFactory] = {}


def register_strategy(name: str) -> Callable[[StrategyFactory], StrategyFactory]:
    """Register a strategy: a callable of a bundle and keyword options."""

    def register(factory: StrategyFactory) -> StrategyFactory:
        _FACTORIES[name] = factory
        return factory

    return register


def strategy_names() -> list[str]:
    """Names of all strategies of this installation, sorted."""
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("edge_runtime."):
                raise
    return sorted(_FACTORIES)


def create_strategy(name: str, bundle: Bundle, **options: Any) -> Strategy:
    """Make a strategy for a bundle.

    Args:
        name: As in `strategy_names`.
        bundle: An opened bundle.
        options: The strategy's own.

    Raises:
        InputError: No such strategy, or an option it does not know.
    """
    names = strategy_names()
    if name not in names:
        raise InputError(f"strategy '{name}' is unknown; expected {', '.join(names)}")
    try:
        return _FACTORIES[name](bundle, **options)
    except TypeError as error:
        raise InputError(f"strategy '{name}': {error}") from None


@register_strategy("none")
class NoStrategy:
    """Proposes nothing: the network as trained."""

    name = "none"

    def __init__(self, bundle: Bundle) -> None:
        del bundle

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """Nothing, ever."""
        return None

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Nothing to forget."""
