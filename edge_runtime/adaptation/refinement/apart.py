"""An adapter method at work: in this process, where each frame waits for it, or in its own."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from edge_runtime.adaptation.refinement.base import to_network
from edge_runtime.adaptation.refinement.supervisor import Supervisor
from edge_runtime.adaptation.refinement.worker import Job
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.frames import Frame


class Method(Protocol):
    """Learns from one image after another, on top of the adapter that is in use."""

    def learn(self, image: np.ndarray, base: np.ndarray | None = None) -> np.ndarray | None:
        """Learn from an image uint8 [H, W, 3]; what was learnt, float32 [A], or None."""
        ...

    def reset(self) -> None:
        """Forget the stream."""
        ...


class HereOrApart:
    """Runs a method here, or keeps a process of its own at it, and never waits for that one.

    Args:
        bundle: See `AdapterMethod`.
        method: A class at the top of its module, to be made from the bundle and `options`.
        apart: Whether in a process of its own.
        duty: With `apart`, the share of its time that the process may work.
        options: Of the method.

    Attributes:
        worker: The process, or None.
    """

    def __init__(
        self, bundle: Bundle, method: type, apart: bool, duty: float, options: dict[str, Any]
    ) -> None:
        self.bundle, self._identity = bundle, identity_adapter(bundle.manifest)
        self.worker: Supervisor | None = None
        self._method: Method | None = None
        if not apart:
            self._method = method(bundle, **options)
            return
        spec = bundle.manifest.input
        target = f"{method.__module__}:{method.__name__}"
        path, size = str(bundle.path.resolve()), (spec.height, spec.width)
        self.worker = Supervisor(Job(path, target, size, options, duty), self._identity)

    def learn(self, frame: Frame, base: np.ndarray) -> np.ndarray | None:
        """Learn from a frame on top of the adapter `base`, float32 [A].

        Returns:
            What was learnt since the last call, float32 [A], or None.
        """
        if self._method is not None:
            return self._method.learn(to_network(frame.image, self.bundle), base)
        assert self.worker is not None
        if self.worker.ready:
            self.worker.offer(to_network(frame.image, self.bundle), base)
        return self.worker.take()

    @property
    def gain(self) -> float:
        """What the method says for what it learnt last; 0 if it says nothing."""
        return float(getattr(self._method or self.worker, "gain", 0.0))

    def reset(self) -> None:
        """Forget the stream."""
        if self._method is not None:
            self._method.reset()
        if self.worker is not None:
            self.worker.reset(self._identity)

    def close(self) -> None:
        """End the process, if there is one."""
        if self.worker is not None:
            self.worker.close()
