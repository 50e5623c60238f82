"""A bundle's network in INT8: calibrated, judged against FP32, kept only where it is worth it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from calibration.confidence import (
    collect_predictions,
    expected_calibration_error,
    fit_temperature,
    set_temperature,
)
from calibration.half import to_half
from calibration.judging import Figures, as_evaluated, drop, self_test
from calibration.network import all_macs, quantisable_layers
from calibration.quantization import DEFAULT_CALIBRATORS, Quantise, Tick, calibrate_with
from calibration.rounding import overflowing, peaks, rounded
from calibration.sensitivity import Damage, Search, fewest_in_float, measure
from calibration.study import Stage, Study, silent
from calibration.timing import latency_ratio
from edge_runtime.bundle import Bundle, update_bundle
from edge_runtime.record import RECORD, amended_record

LEAST_MACS = 0.5  # share of the multiply-adds that must run in INT8
_PEAK_FRAMES = 32  # searched for values beyond FP16
LEAST_GAIN = 0.95  # of FP32's time on the CPU; slower files are not kept


@dataclass
class Outcome:
    """What became of one quantised file.

    Attributes:
        reason: Why it is kept or refused, in a sentence.
        model: The network if it is kept.
        figures: For `calibration.json` and ``--json``.
    """

    reason: str
    model: ModelProto | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether it is kept."""
        return self.model is not None

    def as_dict(self) -> dict[str, Any]:
        """The section of `calibration.json`."""
        return {"accepted": self.accepted, "reason": self.reason, **self.figures}

    def summary(self) -> dict[str, Any]:
        """What an engineer wants to read: no long lists."""
        rows = self.as_dict()
        return {key: value for key, value in rows.items() if key not in ("sensitivity", "trials")}


@dataclass(frozen=True)
class Calibrated:
    """The calibrator that costs least, and what each of them costs."""

    name: str
    quantise: Quantise
    figures: Figures
    drops: dict[str, float]


def calibrate(
    study: Study,
    budget: float | None = None,
    calibrators: Sequence[str] = DEFAULT_CALIBRATORS,
    cpu: bool = True,
    half: bool = True,
    stage: Stage = silent,
) -> dict[str, Outcome]:
    """Make the files "int8" for TensorRT and, with `cpu`, "int8-cpu"; nothing is written.

    Args:
        study: The network and how to judge it.
        budget: Points that may be lost; the judge's own if None.
        calibrators: Names of `quantization.CALIBRATORS` to choose from.
        cpu: Whether to make the file for CPUs.
        half: Whether what stays in float in the file for TensorRT is FP16 where that is safe.
        stage: Shows progress.
    """
    budget = study.judge.budget if budget is None else budget
    calibrated = choose_calibrator(study, calibrators, stage)
    outcomes = {"int8": calibrate_tensorrt(study, calibrated, budget, half, stage)}
    if cpu:
        kept = outcomes["int8"].figures.get("nodes_in_float", [])
        outcomes["int8-cpu"] = calibrate_cpu(study, calibrated, kept, budget, stage)
    return outcomes


def store(bundle: Bundle, outcomes: dict[str, Outcome]) -> Bundle:
    """Put the accepted files into the bundle and say in `calibration.json` what was refused.

    A file of an earlier calibration that this one refuses is taken out: what the record says is
    what the bundle holds.
    """
    files: dict[str, bytes | Path | None] = {}
    for name, outcome in outcomes.items():
        model = outcome.model
        files[f"model.{name}.onnx"] = model.SerializeToString() if model is not None else None
    sections = {name: outcome.as_dict() for name, outcome in outcomes.items()}
    return update_bundle(bundle, {**files, RECORD: amended_record(bundle, sections)})


def choose_calibrator(
    study: Study, names: Sequence[str] = DEFAULT_CALIBRATORS, stage: Stage = silent
) -> Calibrated:
    """Quantise every layer with each calibrator's ranges and keep the one that costs least."""
    best: Calibrated | None = None
    drops: dict[str, float] = {}
    for name in names:
        tick = stage(f"calibrating: {name}", len(study.frames))
        quantise = find_ranges(study, name, tick)
        figures = study.judge(quantise())
        drops[name] = drop(study.before, figures)
        if best is None or drops[name] < drop(study.before, best.figures):
            best = Calibrated(name, quantise, figures, drops)
    assert best is not None
    return best


def find_ranges(study: Study, calibrator: str, tick: Tick = lambda _: None) -> Quantise:
    """What quantises the study's network by a calibrator's ranges, but for what stays in float."""
    quantise = calibrate_with(calibrator, study.model, study.frames, study.adapter, tick)

    def keeping(in_float: Collection[str] = (), style: str = "tensorrt") -> ModelProto:
        return quantise({*in_float, *study.ahead}, style)

    return keeping


def rank_layers(study: Study, quantise: Quantise, stage: Stage = silent) -> list[Damage]:
    """What each layer alone costs when quantised, most sensitive first."""
    quick = study.quick()
    before = quick(study.model)
    tick = stage("quantising layers one by one", len(study.layers))
    return measure(quantise, study.layers, quick, study.agreement, before, tick)


def int8_share(study: Study, in_float: Collection[str]) -> float:
    """Share of the network's multiply-adds that run in INT8."""
    done = sum(layer.macs for layer in study.layers if layer.node not in in_float)
    return done / max(all_macs(study.model), 1)


def calibrate_tensorrt(
    study: Study, calibrated: Calibrated, budget: float, half: bool = True, stage: Stage = silent
) -> Outcome:
    """The file for TensorRT: as many layers in INT8 as the budget allows.

    Args:
        study: The network and how to judge it.
        calibrated: From `choose_calibrator`.
        budget: Points of the worst figure that may be lost.
        half: Whether the rest is FP16 where that is safe.
        stage: Shows progress.
    """
    figures: dict[str, Any] = {
        "budget": budget,
        "judged_by": study.judge.kind,
        "before": as_evaluated(study.before),
        "calibrator": calibrated.name,
        "calibrator_drops": calibrated.drops,
        "frames": len(study.frames),
        "frames_digest": study.frames_digest,
        "domain_distance": study.distance,
    }
    in_float: frozenset[str] = frozenset()
    if drop(study.before, calibrated.figures) > budget:
        ranking = rank_layers(study, calibrated.quantise, stage)
        search = search_in_float(study, calibrated.quantise, ranking, budget, stage)
        figures["sensitivity"] = [row.as_dict() for row in ranking]
        figures["trials"] = [(t.in_float, t.drop) for t in search.trials]
        if search.in_float is None:
            least = min(trial.drop for trial in search.trials)
            return Outcome(
                f"INT8 costs {least:.2f} points at the least, {budget:g} allowed", None, figures
            )
        in_float = search.in_float
    names = {layer.node: layer.name for layer in study.layers}
    figures["nodes_in_float"] = sorted(in_float)
    figures["layers_in_float"] = sorted(names[node] for node in in_float)
    figures["layers_ahead_of_adapter"] = sorted(
        layer.name for layer in quantisable_layers(study.model) if layer.node in study.ahead
    )
    figures["layers_quantised"] = len(study.layers) - len(in_float)
    figures["macs_int8"] = share = int8_share(study, in_float)
    if share < LEAST_MACS:
        return Outcome(
            f"only {share:.0%} of the multiply-adds could stay in INT8 within {budget:g} points; "
            f"below {LEAST_MACS:.0%} it gains nothing over FP16",
            None,
            figures,
        )
    model = calibrated.quantise(in_float)
    return _finish(study, model, budget, figures, half, stage)


def search_in_float(
    study: Study, quantise: Quantise, ranking: list[Damage], budget: float, stage: Stage = silent
) -> Search:
    """The fewest of the most sensitive layers that must stay in float."""
    tick = stage("keeping sensitive layers in float", None)
    return fewest_in_float(
        quantise, ranking, study.judge, study.before, budget, lambda _trial: tick()
    )


def calibrate_cpu(
    study: Study,
    calibrated: Calibrated,
    in_float: Collection[str],
    budget: float,
    stage: Stage = silent,
) -> Outcome:
    """The file for ONNX Runtime on CPUs: kept only if it is faster here, within the budget."""
    model = calibrated.quantise(in_float, "cpu")
    inputs = {"image": study.frames[0][None], "adapter": study.adapter}
    figures: dict[str, Any] = {
        "budget": budget,
        "before": as_evaluated(study.before),
        "latency_ratio": latency_ratio(model, study.model, inputs),
    }
    if figures["latency_ratio"] > LEAST_GAIN:
        return Outcome(
            f"takes {figures['latency_ratio']:.2f} of FP32's time on this CPU; kept only "
            f"below {LEAST_GAIN:g}",
            None,
            figures,
        )
    return _finish(study, model, budget, figures, False, stage, literal=False)


def _finish(
    study: Study,
    model: ModelProto,
    budget: float,
    figures: dict[str, Any],
    half: bool,
    stage: Stage,
    literal: bool = True,
) -> Outcome:
    """Recalibrate confidence, judge the network that would be shipped, and decide."""
    model, figures["confidence"] = recalibrate(study, model, stage)
    figures["rest"] = "fp16" if half else "fp32"
    judged = model
    if half:
        model = to_half(model, _too_large_for_half(study, model))
        judged = rounded(model)  # FP16 kernels for CPUs differ between ONNX Runtime's versions
    after = study.judge(judged, literal)
    figures["after"] = as_evaluated(after)
    figures["drop"] = lost = drop(study.before, after)
    if lost > budget:
        return Outcome(f"costs {lost:.2f} points, {budget:g} allowed", None, figures)
    if objection := self_test(study.bundle, judged, "int8"):
        return Outcome(f"does not pass the robot's self-test: {objection}", None, figures)
    return Outcome(f"costs {lost:.2f} points of {budget:g} allowed", model, figures)


def _too_large_for_half(study: Study, model: ModelProto) -> set[str]:
    nodes = {node.name for node in model.graph.node}
    largest = peaks(study.model, study.frames[:_PEAK_FRAMES], study.adapter)
    return nodes.intersection(overflowing(study.model, largest))


def recalibrate(
    study: Study, model: ModelProto, stage: Stage = silent
) -> tuple[ModelProto, dict[str, Any]]:
    """Give each head the temperature that makes its confidence honest.

    Fitted on every other labelled frame and kept only if the expected calibration error falls on
    the frames in between, too.

    Returns:
        The network, and by task ``temperature``, ``ece_fp32``, ``ece_before``, ``ece_after`` on
        the frames not fitted to. Without labels the network as it is and nothing.
    """
    if study.labelled is None:
        return model, {}
    count = len(study.labelled)
    tick = stage("recalibrating confidence", 3)
    fitted = collect_predictions(study.bundle, model, study.labelled, range(0, count, 2))
    tick()
    tested = collect_predictions(study.bundle, model, study.labelled, range(1, count, 2))
    tick()
    float_ = collect_predictions(study.bundle, study.model, study.labelled, range(1, count, 2))
    tick()
    report = {}
    for task in sorted(fitted.keys() & tested.keys()):
        found, right = tested[task], tested[task].right
        temperature = fit_temperature(fitted[task])
        before = expected_calibration_error(found.confidences(), right)
        after = expected_calibration_error(found.confidences(temperature), right)
        if after >= before:
            temperature, after = 1.0, before
        else:
            model = set_temperature(model, task, temperature)
        report[task] = {
            "temperature": temperature,
            "ece_fp32": expected_calibration_error(float_[task].confidences(), float_[task].right),
            "ece_before": before,
            "ece_after": after,
        }
    return model, report
