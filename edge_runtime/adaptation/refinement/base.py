"""What gradient methods share: the student, the adapter they tune, and the image they see."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.frozen import freeze
from edge_runtime.adaptation.network import Outputs, identity, load_student, run
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.geometry import Geometry


class AdapterMethod(ABC):
    """A test-time method with the adapter in place of the weights that its paper tunes.

    Batches are of one frame, in the order of the stream; batch norm keeps the source's statistics.

    Args:
        bundle: Whose student is rebuilt.
        every: Learn from every so many-th frame.
        threads: CPU threads of torch, for the whole process; as they are if None.

    Attributes:
        adapter: float32 [A], the values that gradients go to.
    """

    name = "gradient"

    def __init__(self, bundle: Bundle, every: int = 1, threads: int | None = None) -> None:
        if every < 1:
            raise InputError(f"every is {every}, expected at least 1")
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle, self.every = bundle, every
        self.student = freeze(load_student(bundle))
        self.source = identity(bundle)
        self.reset()

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Forget the stream; go on from `adapter` if one is given, else from the identity."""
        start = self.source if adapter is None else torch.from_numpy(np.array(adapter, np.float32))
        self.adapter = start.clone().requires_grad_(True)
        self._seen = 0
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Set up what belongs to one stream: optimiser, averages, memories."""

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """Learn from a frame; the adapter to use from the next one on, or None."""
        self._seen += 1
        if (self._seen - 1) % self.every:
            return None
        return self.learn(to_network(frame.image, self.bundle))

    def learn(self, image: np.ndarray) -> np.ndarray | None:
        """Learn from an image uint8 [H, W, 3] at the network's size.

        Returns:
            The adapter, float32 [A]; None if nothing was learnt from this image.
        """
        if not self.step(image):
            return None
        return self.adapter.detach().numpy().copy()

    @abstractmethod
    def step(self, image: np.ndarray) -> bool:
        """One step on an image uint8 [H, W, 3]; whether the adapter changed."""

    def forward(self, image: np.ndarray, adapter: Tensor | None = None) -> Outputs:
        """The student's outputs on one image, under the adapter being tuned unless another."""
        batch = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
        return run(self.student, batch, self.adapter if adapter is None else adapter)


def to_network(image: np.ndarray, bundle: Bundle) -> np.ndarray:
    """A raw image, fitted to the network's input as perception does; uint8 [H, W, 3]."""
    spec = bundle.manifest.input
    raw, size = (image.shape[0], image.shape[1]), (spec.height, spec.width)
    fitted = np.zeros((*size, 3), np.uint8)
    Geometry(raw, size, spec.resize, bundle.manifest.camera).to_network(image, out=fitted)
    return fitted
