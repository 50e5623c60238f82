"""What a changed network costs: the task metrics where there are labels, else agreement."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import ModelProto

from calibration.network import open_session
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.datasets import Dataset
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.evaluation import evaluate
from edge_runtime.perception import Perception
from edge_runtime.selftest import boxes_found

BUDGET_WITH_LABELS = 1.0  # points of mIoU or AP@.5
BUDGET_OF_AGREEMENT = 5.0  # points of mask pixels or boxes that FP32 gives otherwise
_SAME_BOX = 0.5  # IoU

Figures = dict[str, float]


class Judge(Protocol):
    """Scores a network; higher is better, 1 is best.

    Attributes:
        kind: "labels" or "agreement".
        budget: Points that may be lost where the user says nothing else.
    """

    kind: str
    budget: float

    def __call__(self, model: ModelProto, literal: bool = True) -> Figures:
        """Figures by name, as fractions; `literal` as in `perception_of`."""
        ...


def drop(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Points by which the figure that suffers most falls; negative if all rise."""
    return max(100 * (before[name] - after[name]) for name in before)


@contextmanager
def perception_of(
    bundle: Bundle, model: ModelProto, precision: str = "fp32", literal: bool = True
) -> Iterator[Perception]:
    """The robot's own code around another network, on ONNX Runtime.

    Args:
        bundle: Whose manifest describes the network.
        model: The network.
        precision: Of it, for the engine's name.
        literal: Compute Q/DQ pairs as they are written; see `OnnxRuntimeEngine`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        engine = OnnxRuntimeEngine(path, precision=precision, literal=literal)
        try:
            yield Perception(bundle, engine=engine)
        finally:
            engine.close()


class LabelJudge:
    """mIoU and AP@.5 on labelled frames, by the code the robot runs."""

    kind, budget = "labels", BUDGET_WITH_LABELS

    def __init__(self, bundle: Bundle, dataset: Dataset, limit: int | None = None) -> None:
        self.bundle, self.dataset, self.limit = bundle, dataset, limit

    def __call__(self, model: ModelProto, literal: bool = True) -> Figures:
        with perception_of(self.bundle, model, literal=literal) as perception:
            found = evaluate(perception, self.dataset, self.limit, progress=False)
        values = {
            "miou": found.get("segmentation", {}).get("miou"),
            "map_50": found.get("detection", {}).get("map_50"),
        }
        figures = {name: value for name, value in values.items() if value is not None}
        if not figures:
            raise InputError(f"{self.dataset.source}: holds no object and no pixel to judge by")
        return figures


class AgreementJudge:
    """How far a network gives what the FP32 network gives, on frames without labels."""

    kind, budget = "agreement", BUDGET_OF_AGREEMENT

    def __init__(
        self, reference: ModelProto, frames: Sequence[np.ndarray], adapter: np.ndarray
    ) -> None:
        self.frames, self.adapter = frames, adapter
        self.expected = self._run(reference)

    def _run(self, model: ModelProto, literal: bool = True) -> list[dict[str, np.ndarray]]:
        session = open_session(model, literal)
        names = [output.name for output in session.get_outputs()]
        feeds = [{"image": frame[None], "adapter": self.adapter} for frame in self.frames]
        return [dict(zip(names, session.run(names, f), strict=True)) for f in feeds]

    def __call__(self, model: ModelProto, literal: bool = True) -> Figures:
        masks: list[float] = []
        hits = total = 0
        for expected, found in zip(self.expected, self._run(model, literal), strict=True):
            if "mask" in expected:
                masks.append(float((expected["mask"] == found["mask"]).mean()))
            if "boxes" in expected:
                for one, other in ((expected, found), (found, expected)):
                    same, sure = boxes_found(one, other, _SAME_BOX, score=1.0)
                    hits, total = hits + same, total + sure
        figures = {"masks": float(np.mean(masks))} if masks else {}
        if total:
            figures["boxes"] = hits / total
        return figures


def judge_of(
    bundle: Bundle, labelled: Dataset | None, reference: ModelProto, frames: Sequence[np.ndarray]
) -> Judge:
    """Labels if there are any, else agreement on `frames`."""
    if labelled is not None:
        return LabelJudge(bundle, labelled)
    return AgreementJudge(reference, frames, identity_adapter(bundle.manifest))


def as_evaluated(figures: Figures) -> dict[str, Any]:
    """Figures under the keys that ``evaluate`` uses."""
    places = {"miou": ("segmentation", "miou"), "map_50": ("detection", "map_50")}
    found: dict[str, Any] = {}
    for name, value in figures.items():
        section, key = places.get(name, ("agreement", name))
        found.setdefault(section, {})[key] = value
    return found


def self_test(bundle: Bundle, model: ModelProto, precision: str) -> str | None:
    """What the robot's self-test has against a network, or None; see `selftest.run_canary`."""
    if not bundle.has("canary.npz"):
        return None
    with perception_of(bundle, model, precision) as perception:
        try:
            perception.self_test()
        except RefusedError as error:
            return str(error)
    return None
