"""Which heads there are: the student's, and a workstation's references; one registry."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor, nn

from edge_runtime.errors import InputError

if TYPE_CHECKING:
    from distill.settings import FinetuneSettings
    from edge_runtime.datasets import Dataset

_MODULES = ("distill.tasks.student", "distill.reference.segmentation", "distill.reference.rcnn")


class Family:
    """How models of one family of heads are built, trained and run. Stateless.

    A model has an attribute ``trunk``, which is what freezing freezes.

    Attributes:
        name: as ``--head`` takes it.
        tasks: what the family can do.
        robot: whether ``export`` can make a bundle of it.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    robot: ClassVar[bool] = False

    @classmethod
    def build(
        cls, trunk: str, classes: Mapping[str, list[str]], settings: FinetuneSettings
    ) -> nn.Module:
        """A model with random weights for the classes of each task."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, model: nn.Module, data: Dataset) -> None:
        """Takes from the training data what ``losses`` needs beside a batch.

        Raises:
            InputError: the data lacks it.
        """

    @classmethod
    def losses(
        cls, model: nn.Module, batch: Mapping[str, Tensor], criteria: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """The loss of each task on a batch of ``LabelledViews``.

        Args:
            criteria: per task the loss over a head's outputs, for those heads that have none.
        """
        raise NotImplementedError

    @classmethod
    def logits(cls, model: nn.Module, image: Tensor) -> Tensor:
        """Segmentation logits [B, C, h, w] of uint8 images [B, H, W, 3]."""
        logits: Tensor = model(image)["segmentation"]
        return logits

    @classmethod
    def outputs(cls, model: nn.Module, image: Tensor) -> dict[str, np.ndarray]:
        """What a bundle's network gives (``boxes``, ``scores``, ``labels``, ``mask``) for one
        uint8 image [1, H, W, 3]."""
        raise NotImplementedError


F = TypeVar("F", bound=type[Family])
_FAMILIES: dict[str, type[Family]] = {}


def register_family(name: str) -> Callable[[F], F]:
    """Registers a family under the name that ``--head`` takes."""

    def register(cls: F) -> F:
        cls.name = name
        _FAMILIES[name] = cls
        return cls

    return register


def family(name: str) -> type[Family]:
    """The family of a name.

    Raises:
        InputError: there is none; names the nearest.
    """
    for module in _MODULES:
        importlib.import_module(module)
    if name not in _FAMILIES:
        near = difflib.get_close_matches(name, _FAMILIES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no head {name!r}; there are {', '.join(_FAMILIES)}{hint}")
    return _FAMILIES[name]


def family_for(name: str, tasks: list[str]) -> type[Family]:
    """The family of a name, if it can do all the tasks.

    Raises:
        InputError: it cannot.
    """
    found = family(name)
    if missing := [t for t in tasks if t not in found.tasks]:
        able = [n for n, f in _FAMILIES.items() if set(missing) <= set(f.tasks)]
        raise InputError(
            f"head {name} does {' and '.join(found.tasks)}, not {', '.join(missing)}; for that "
            f"there are {', '.join(able) or 'none'}"
        )
    return found


def plain(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors as arrays."""
    return {k: v.detach().cpu().numpy() for k, v in outputs.items()}
