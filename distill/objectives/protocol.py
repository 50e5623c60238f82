"""What a self-supervised method is: views of an image, a loss of a batch of them, an encoder."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from distill.encoders import Encoder
from edge_runtime.errors import InputError

Kind = Literal[
    "pretext",
    "contrastive",
    "non-contrastive",
    "redundancy reduction",
    "self-distillation",
    "masked",
]
# An image, uint8 [3, H, W] RGB, to what default collation makes a batch of.
Views = Callable[[Tensor], list[Tensor]]


class ObjectiveOptions(BaseModel):
    """Hyper-parameters of a method; a misspelt one is an error."""

    model_config = ConfigDict(extra="forbid")


class Objective(nn.Module, ABC):
    """One self-supervised method over one encoder.

    A step is ``begin_step``, ``forward``, backward, optimiser, ``end_step``; ``progress`` runs from
    0 to 1 over the training. All state that a resumed run needs is in parameters and buffers, and
    randomness comes from torch's generator, which the training loop seeds for every step.

    Args:
        encoder: what is trained.
        options: an instance of the class's ``Options``.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    Options: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions

    def __init__(self, encoder: Encoder, options: ObjectiveOptions) -> None:
        super().__init__()
        self.check(encoder)
        self.encoder, self.options = encoder, options

    @classmethod
    def check(cls, encoder: Encoder) -> None:
        """Refuses an encoder that the method cannot train.

        Raises:
            InputError: saying why, and which trunks it can.
        """

    @classmethod
    @abstractmethod
    def views(cls, options: ObjectiveOptions, size: tuple[int, int], encoder: Encoder) -> Views:
        """The transform of one image; randomness from torch's and numpy's global generators.

        Args:
            size: height and width of (global) views in pixels.
            encoder: for its normalisation, patch size and stride.
        """

    @abstractmethod
    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Terms of the loss, the total under ``loss``; ``batch`` is collated ``views``.

        Losses across processes must equal those of one process with the same global batch.
        """

    def begin_step(self, progress: float) -> None:
        """Sets what follows a schedule: temperatures, momentum, frozen layers."""

    def end_step(self, progress: float) -> None:
        """Updates what follows the trained weights, such as a momentum encoder."""

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups: no decay of vectors (norms, biases, tokens), as the papers do.

        ``lr`` of a group is relative to the recipe's.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def kept(self) -> Encoder:
        """The encoder worth keeping: the trained one, or its momentum average."""
        return self.encoder


O = TypeVar("O", bound=type[Objective])  # noqa: E741 - one letter, as type variables are
_METHODS: dict[str, type[Objective]] = {}


def register_objective(name: str) -> Callable[[O], O]:
    """Registers a method under the name that ``--method`` takes."""

    def register(cls: O) -> O:
        cls.name = name
        _METHODS[name] = cls
        return cls

    return register


def objective_names() -> list[str]:
    """Names of all methods; imports the files beside this one, which register them."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], "distill.objectives."):
        importlib.import_module(module.name)
    return sorted(_METHODS)


def objective(name: str) -> type[Objective]:
    """The method of a name.

    Raises:
        InputError: there is none; names the nearest.
    """
    known = objective_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no method {name!r}; there are {', '.join(known)}{hint}")
    return _METHODS[name]
