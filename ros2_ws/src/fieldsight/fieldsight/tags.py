"""What the vectors of adaptation say of themselves.

std_msgs/Float32MultiArray has no header, so the label of its only dimension is one:

    adapter model=0123456789abcdef
    statistics model=0123456789abcdef adapter=0123456789abcdef stamp=1700000000000000000 frame=left

`model` is the beginning of the SHA-256 of the bundle's model.onnx, in every precision; `adapter`
that of the adapter's float32 values, so that whoever learns from statistics knows under which
adapter they were taken; `stamp` and `frame` are those of the image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from std_msgs.msg import Float32MultiArray

from edge_runtime import InputError, Result
from edge_runtime.bundle import Bundle
from fieldsight.conversions import vector_from_message, vector_to_message

_DIGITS = 16
_MOST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of one frame, float32 [A], and what they were taken of and under."""

    values: np.ndarray
    adapter: str
    stamp_ns: int
    frame_id: str


def model_of(bundle: Bundle) -> str:
    """The name of a bundle's network, 16 hex digits."""
    return bundle.manifest.files["model.onnx"].sha256[:_DIGITS]


def digest_of(adapter: np.ndarray) -> str:
    """The name of an adapter float32 [A], 16 hex digits."""
    values = np.ascontiguousarray(adapter, np.float32)
    return hashlib.sha256(values.tobytes()).hexdigest()[:_DIGITS]


def adapter_message(adapter: np.ndarray, model: str) -> Float32MultiArray:
    """An adapter float32 [A] for the network named `model`."""
    return vector_to_message(adapter, f"adapter model={model}")


def statistics_message(result: Result, model: str, adapter: str) -> Float32MultiArray:
    """The statistics of a result that has them.

    Args:
        result: Of the frame.
        model: Name of the network.
        adapter: Name of the adapter in use on that frame.
    """
    assert result.statistics is not None
    label = (
        f"statistics model={model} adapter={adapter} stamp={result.stamp_ns} "
        f"frame={result.frame_id}"
    )
    return vector_to_message(result.statistics, label)


def read_adapter(message: Float32MultiArray, model: str, size: int) -> np.ndarray:
    """The adapter of a message, float32 [size], finite.

    Raises:
        InputError: It is none, or not one for this network.
    """
    return _read(message, "adapter", model, size)[0]


def read_statistics(message: Float32MultiArray, model: str, size: int) -> Statistics:
    """The statistics of a message; their values may be anything, their number is right.

    Raises:
        InputError: They are none, or not those of this network.
    """
    values, label = _read(message, "statistics", model, size, finite=False)
    words, _, frame_id = label.partition(" frame=")
    try:
        return Statistics(values, _word(words, "adapter"), int(_word(words, "stamp")), frame_id)
    except ValueError:
        raise InputError(
            f"statistics labelled {label[:_MOST_SHOWN]!r}: the stamp is no number"
        ) from None


def _read(
    message: Float32MultiArray, kind: str, model: str, size: int, finite: bool = True
) -> tuple[np.ndarray, str]:
    dimensions = message.layout.dim
    label = dimensions[0].label if len(dimensions) == 1 else ""
    if label.partition(" ")[0] != kind:
        raise InputError(
            f"labelled {label[:_MOST_SHOWN]!r} in {len(dimensions)} dimensions, expected one, "
            f"labelled '{kind} model={model}'"
        )
    found = _word(label, "model")
    if found != model:
        raise InputError(f"{kind} for the network {found!r:.40}, but this bundle's is '{model}'")
    values = vector_from_message(message)
    if values.shape != (size,):
        raise InputError(f"{kind} has {len(values)} values, expected {size}")
    if finite and not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise InputError(f"{kind} holds {bad} values that are not finite")
    return values, label


def _word(label: str, name: str) -> str:
    """The value of `name=value` in a label; empty if it is not there."""
    for word in label.split(" "):
        key, _, value = word.partition("=")
        if key == name:
            return value
    return ""
