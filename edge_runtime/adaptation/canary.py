"""The canary under a candidate adapter: does the network still know the world it was trained in?

A self-test that costs one forward pass a frame; the caller says how many frames. What the network
gave as trained lies in the bundle, so that side costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError
from edge_runtime.evaluation import confusion, miou
from edge_runtime.perception import Perception
from edge_runtime.selftest import boxes_found, load_canary

_IOU, _SCORE = 0.5, 1.0  # a box is found again by overlap and class alone

Run = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
SelfTest = Callable[[np.ndarray], "CanaryReport"]  # of an adapter [A]


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """How the canary's frames fared under an adapter, and as trained.

    Attributes:
        frames: How many were run.
        miou: Under the adapter, 0 to 1, against labels, or against the masks given at export where
            the bundle has no labels; None without segmentation.
        miou_as_trained: The same without the adapter.
        boxes_found: Share of the confident boxes of export that are found again; None without.
        finite: Whether every output was.
    """

    frames: int
    miou: float | None
    miou_as_trained: float | None
    boxes_found: float | None
    finite: bool

    @property
    def kept(self) -> float:
        """Share of what was known that still is, 0 to 1: the worst of masks and boxes."""
        shares = [1.0 if self.finite else 0.0]
        if self.miou is not None and self.miou_as_trained:
            shares.append(min(self.miou / self.miou_as_trained, 1.0))
        if self.boxes_found is not None:
            shares.append(self.boxes_found)
        return min(shares)


class Canary:
    """The canary of a bundle, to be run under adapters.

    Args:
        bundle: With canary.npz.

    Raises:
        BundleError: There is none, or it is damaged.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._path = bundle.path / "canary.npz"
        self._content = load_canary(bundle)
        self._classes = len(bundle.manifest.classes.get("segmentation", []))
        self._next = 0

    def __len__(self) -> int:
        return len(self._content["images"])

    def run(self, run: Run, adapter: np.ndarray, frames: int = 4) -> CanaryReport:
        """Run some frames under an adapter; the next call goes on with the next ones.

        Args:
            run: Maps an image uint8 [1, H, W, 3] at network size and an adapter [A] to the
                engine's outputs: one forward pass.
            adapter: float32 [A].
            frames: How many to run, at most as many as there are.
        """
        count = min(max(frames, 1), len(self))
        chosen = [(self._next + i) % len(self) for i in range(count)]
        self._next = (self._next + count) % len(self)
        matrix = np.zeros((2, self._classes, self._classes), np.int64)
        hits, total, finite = 0, 0, True
        for index in chosen:
            outputs = run(self._content["images"][index][None], adapter)
            finite &= all(
                np.isfinite(values).all() for values in outputs.values() if values.dtype.kind == "f"
            )
            expected = self._expected(index)
            if "mask" in expected and "mask" in outputs and self._classes:
                label = self._label(index, expected["mask"].shape)
                matrix[0] += confusion(outputs["mask"], label, self._classes)
                matrix[1] += confusion(expected["mask"], label, self._classes)
            if {"boxes", "scores", "labels"} <= expected.keys() & outputs.keys():
                one, all_ = boxes_found(expected, outputs, _IOU, _SCORE)
                hits, total = hits + one, total + all_
        known = bool(matrix.any())
        return CanaryReport(
            frames=count,
            miou=miou(matrix[0]) if known else None,
            miou_as_trained=miou(matrix[1]) if known else None,
            boxes_found=hits / total if total else None,
            finite=bool(finite),
        )

    def _expected(self, index: int) -> dict[str, np.ndarray]:
        try:
            return {
                key.removeprefix("expected_"): values[index]
                for key, values in self._content.items()
                if key.startswith("expected_")
            }
        except IndexError:
            raise BundleError(
                f"{self._path}: holds fewer expected outputs than images; export it again"
            ) from None

    def _label(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        """The frame's label mask at the network's mask size; what it gave at export without one."""
        masks = self._content.get("masks")
        if masks is None:
            return self._content["expected_mask"][index]
        size = (shape[1], shape[0])
        return cv2.resize(masks[index], size, interpolation=cv2.INTER_NEAREST)


def canary_of(perception: Perception, frames: int = 4) -> SelfTest | None:
    """A self-test that borrows a perception's engine between two of its frames.

    Args:
        perception: Of the bundle whose adapters are tested.
        frames: Forward passes a test.

    Returns:
        None if the bundle has no canary.
    """
    if not perception.bundle.has("canary.npz"):
        return None
    canary = Canary(perception.bundle)

    def run(image: np.ndarray, adapter: np.ndarray) -> Mapping[str, np.ndarray]:
        return perception.engine.infer({"image": image, "adapter": adapter})

    def test(adapter: np.ndarray) -> CanaryReport:
        try:
            return canary.run(run, np.asarray(adapter, np.float32), frames)
        finally:
            perception.adapter = perception.adapter  # the engine holds another one now

    return test
