"""The predictor: from what frames look like to the adapter for it, learnt at the workstation.

A small network generates the affine parameters of a large one, as in feature-wise linear modulation
(Perez et al., AAAI 2018, section 2) and hypernetworks (Ha et al., ICLR 2017): a perceptron of three
layers from a descriptor of the image to scale and shift of every adapted channel. It is taught
through the frozen student on frames painted in random looks (`fieldsight-distill predictor`), and
evaluated here in numpy, in microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edge_runtime.adaptation.descriptor import SIZE
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError

FILE = "predictor.safetensors"
MOST_SCALE = 3.0  # of a channel, and its inverse the least
FARTHEST = 6.0  # standard deviations from the looks it was taught in that an input counts as
LAYERS = 3


@dataclass(frozen=True)
class Predictor:
    """A perceptron over descriptors.

    Attributes:
        centre: float32 [SIZE], mean of the descriptors that it was taught on.
        spread: float32 [SIZE], their standard deviation.
        weights: Of each layer, float32 [outputs, inputs].
        biases: Of each layer, float32 [outputs].
        order: int [A]: where each value of the adapter stands among all scales, then all shifts.
        unit: float32 [C], what a shift of one means in each channel.
    """

    centre: np.ndarray
    spread: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    order: np.ndarray
    unit: np.ndarray

    @classmethod
    def of(cls, bundle: Bundle) -> Predictor | None:
        """Read the predictor of a bundle; None if it has none.

        Raises:
            BundleError: It is damaged, or of another network.
        """
        if not bundle.has(FILE):
            return None
        path = bundle.file(FILE)
        try:
            arrays = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise BundleError(f"{path}: cannot be read ({error}); teach it again") from None
        channels = [point.channels for point in bundle.manifest.student.adapter]
        for name, shape in _shapes(arrays, sum(channels)).items():
            values = arrays.get(name)
            if values is None or values.shape != shape or values.dtype != np.float32:
                found = "absent" if values is None else f"{values.dtype} {values.shape}"
                raise BundleError(
                    f"{path}: '{name}' is {found}, expected float32 {shape}; teach it again"
                )
            if not np.isfinite(values).all():
                raise BundleError(f"{path}: '{name}' holds values that are not finite; refused")
        if not (arrays["spread"] > 0).all():
            raise BundleError(f"{path}: a spread is not above 0; teach it again")
        layers = range(LAYERS)
        weights = tuple(arrays[f"{i}.weight"] for i in layers)
        biases = tuple(arrays[f"{i}.bias"] for i in layers)
        return cls(
            arrays["centre"], arrays["spread"], weights, biases, adapter_order(channels),
            arrays["unit"],
        )  # fmt: skip

    def __call__(self, descriptor: np.ndarray) -> np.ndarray:
        """The adapter float32 [A] for a descriptor float32 [SIZE], or a mean of several."""
        x = (descriptor - self.centre) / self.spread
        x = np.clip(x, -FARTHEST, FARTHEST).astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = weight @ x + bias
            x = x / (1 + np.exp(-np.clip(x, -60, 60)))  # SiLU
        scale, shift = np.split(self.weights[-1] @ x + self.biases[-1], 2)
        scale = np.exp(np.log(MOST_SCALE) * np.tanh(scale))
        return np.concatenate([scale, shift * self.unit])[self.order].astype(np.float32)


def adapter_order(channels: list[int]) -> np.ndarray:
    """int [A]: where each value of an adapter stands among all scales [C], then all shifts [C].

    Args:
        channels: Of each adapter point.
    """
    total, at, found = sum(channels), 0, []
    for count in channels:
        part = np.arange(at, at + count)
        found += [part, total + part]
        at += count
    return np.concatenate(found)


def _shapes(arrays: dict[str, np.ndarray], channels: int) -> dict[str, tuple[int, ...]]:
    """What each array of the file must be; the hidden layers' widths are the file's own."""
    widths = [SIZE]
    for layer in range(LAYERS - 1):
        bias = arrays.get(f"{layer}.bias")
        widths.append(max(1, bias.size) if bias is not None else 1)
    widths.append(2 * channels)
    shapes: dict[str, tuple[int, ...]] = {
        "centre": (SIZE,), "spread": (SIZE,), "unit": (channels,)
    }  # fmt: skip
    for layer in range(LAYERS):
        shapes[f"{layer}.weight"] = (widths[layer + 1], widths[layer])
        shapes[f"{layer}.bias"] = (widths[layer + 1],)
    return shapes
