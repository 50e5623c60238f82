"""The project's own errors and how a rejected setting is explained.

A message says what was found, what was expected and what to do. The command lines print it
without a traceback and end with the exit code of its class.
"""

from __future__ import annotations

import difflib
import types
import typing

from pydantic import BaseModel, ValidationError


class FieldsightError(Exception):
    """Something went wrong that the project knows about; base of its other errors."""

    exit_code = 1


class InputError(FieldsightError, ValueError):
    """What the user gave cannot be used: a file, an argument, a setting."""

    exit_code = 2


class BundleError(InputError):
    """A model bundle is incomplete, altered or of a version this program cannot read."""


class RefusedError(FieldsightError):
    """A safety check refused to go on, though the input could be read."""

    exit_code = 3


def explain_validation(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Turn pydantic's errors into sentences; a misspelt key names the nearest right one.

    Args:
        error: What `model.model_validate...` raised.
        model: The model that was being validated.
        source: What the settings came from, such as a file name.

    Returns:
        One line a problem, each starting with `source` and the place within it.
    """
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            key = str(problem["loc"][-1])
            names = _field_names_at(model, problem["loc"][:-1])
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(names)}"
            lines.append(f"{source}: unknown key '{place}'; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: key '{place}' is missing; add it")
        else:
            lines.append(f"{source}: {place}: {problem['msg']} (found {problem['input']!r:.80})")
    return "\n".join(lines)


def _field_names_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names that the model found at `location` inside `model` accepts."""
    for part in location:
        field = model.model_fields.get(str(part))
        inner = _model_within(field.annotation) if field else None
        model = inner or model
    return sorted(model.model_fields)


def _model_within(annotation: typing.Any) -> type[BaseModel] | None:
    """The first pydantic model inside a type such as `list[Model] | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        if found := _model_within(argument):
            return found
    return None
