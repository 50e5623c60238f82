"""From a bundle to its FP16 network: kept only if it neither overflows nor costs too much."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from calibration.half import HALF_MAX, half_nodes, prepare, to_half
from calibration.judging import AgreementJudge, as_evaluated, drop, judge_of, self_test
from calibration.network import quantisable_layers
from calibration.rounding import not_finite, overflowing, peaks, rounded
from edge_runtime.bundle import Bundle, identity_adapter, update_bundle
from edge_runtime.datasets import Dataset, load_dataset
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.record import RECORD, amended_record

FILE = "model.fp16.onnx"
BUDGET = 0.2  # points of mIoU or AP@.5 that may be lost
BUDGET_OF_AGREEMENT = 1.0  # points of mask pixels or boxes, where there are no labels


def labelled_data(bundle: Bundle, source: str) -> Dataset | None:
    """The dataset that `source` names, if it has labels for what the bundle finds."""
    if not re.search(r"\.ya?ml(:[^/]*)?$", source):
        return None
    dataset = load_dataset(source)
    masks = any(sample.mask is not None for sample in dataset.samples)
    has = {"segmentation": masks, "detection": dataset.boxes is not None}
    return dataset if any(has[task] for task in bundle.manifest.tasks) else None


def evenly(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """At most `count` of the frames, evenly spaced from the first to the last."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round())
    return [frames[int(index)] for index in chosen]


def convert(
    bundle: Bundle,
    frames: Sequence[np.ndarray],
    labelled: Dataset | None = None,
    budget: float | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], ModelProto]:
    """Convert a bundle's network and judge the result; nothing is written.

    Args:
        bundle: Its `model.onnx` is converted.
        frames: uint8 [H, W, 3] of the network's size, to look for overflow and to compare on.
        labelled: Judge by these labels; by agreement on `frames` if None.
        budget: Points that may be lost; `BUDGET` or `BUDGET_OF_AGREEMENT` if None.
        tick: Called after each frame that is searched for overflow.

    Returns:
        The report and the FP16 network, accepted or not.

    Raises:
        InputError: The network cannot be read or converted.
        RefusedError: Activations are not finite in FP32 already.
    """
    source = _load(bundle.file("model.onnx"))
    adapter = identity_adapter(bundle.manifest)
    largest = peaks(source, frames, adapter, tick)
    in_float = overflowing(source, largest)
    network = to_half(source, in_float)
    twin = rounded(network)
    judge = judge_of(bundle, labelled, source, frames)
    before, after = judge(source), judge(twin)
    if budget is None:
        budget = BUDGET if judge.kind == "labels" else BUDGET_OF_AGREEMENT
    lost = drop(before, after)
    reason = _objection(bundle, twin, frames, lost, budget)
    agreement = after
    if judge.kind == "labels":
        agreement = AgreementJudge(source, frames, adapter)(twin)
    names = {layer.node: layer.name for layer in quantisable_layers(source)}
    prepared = prepare(source)
    half = half_nodes(prepared, in_float)
    peak = max(largest, key=largest.__getitem__, default="")
    report = {
        "accepted": reason is None,
        "reason": reason or f"loses {lost:.2f} points, {budget:g} allowed",
        "judged_by": judge.kind,
        "budget": budget,
        "before": as_evaluated(before),
        "after": as_evaluated(after),
        "agreement": agreement,
        "layers_in_float": [names.get(name, name) for name in in_float],
        "nodes": {"fp16": len(half), "others": len(prepared.graph.node) - len(half)},
        "largest_value": {"tensor": peak, "value": largest.get(peak, 0.0), "limit": HALF_MAX},
        "frames": len(frames),
    }
    return report, network


def write(bundle: Bundle, report: dict[str, Any], network: ModelProto) -> Bundle:
    """Put an accepted network and its figures into the bundle.

    Raises:
        RefusedError: The report does not accept it; the bundle is unchanged.
    """
    if not report["accepted"]:
        raise RefusedError(f"{bundle.path}: FP16 {report['reason']}; the bundle is unchanged")
    return update_bundle(
        bundle,
        {
            FILE: network.SerializeToString(),
            RECORD: amended_record(bundle, {"fp16": report}),
        },
    )


def _load(path: Path) -> ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise InputError(f"{path}: not an ONNX network: {error}; export the bundle again") from None
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise InputError(f"{path}: refers to weights in other files; export the bundle again")
    return model


def _objection(
    bundle: Bundle, twin: ModelProto, frames: Sequence[np.ndarray], lost: float, budget: float
) -> str | None:
    """Why the network must not be used, or None."""
    if output := not_finite(twin, frames, identity_adapter(bundle.manifest)):
        return f"gives values in '{output}' that are not finite"
    if not lost <= budget:
        return f"loses {lost:.2f} points, {budget:g} allowed"
    if objection := self_test(bundle, twin, "fp16"):
        return f"does not pass the robot's self-test: {objection}"
    return None
