from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from calibration import int8
from calibration.int8 import (
    Calibrated,
    calibrate,
    calibrate_cpu,
    choose_calibrator,
    rank_layers,
    store,
)
from calibration.network import Layer
from calibration.quantization import calibrate_with
from calibration.rounding import rounded
from calibration.sensitivity import Damage, fewest_in_float
from calibration.study import Study, open_study
from edge_runtime.bundle import Bundle, open_bundle, update_bundle
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import BundleError
from edge_runtime.record import read_record


def with_a_layer_that_quantises_badly(bundle: Bundle) -> tuple[Bundle, str]:
    """Scale one channel before a convolution by 4000 and its weights by the inverse.

    The network computes what it did, but one channel takes the whole INT8 range of that tensor.
    """
    model = onnx.load(bundle.file("model.onnx"))
    weights = {t.name: t for t in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type != "Conv" or "segmentation.classify" not in node.input[1]:
            continue
        before = makers[makers[node.input[0]].input[0]]  # convolution, ReLU, this one
        _scale(weights, before.input[1], 4000, axis=0)
        if len(before.input) > 2:
            _scale(weights, before.input[2], 4000, axis=0)
        _scale(weights, node.input[1], 1 / 4000, axis=1)
        return update_bundle(bundle, {"model.onnx": model.SerializeToString()}), node.name
    raise AssertionError("the network has no such layer")


def _scale(weights: dict[str, Any], name: str, factor: float, axis: int) -> None:
    array = numpy_helper.to_array(weights[name]).copy()
    array[(slice(None),) * axis + (0,)] *= factor
    weights[name].CopyFrom(numpy_helper.from_array(array, name))


def study_of(bundle: Bundle, blocks: Path) -> Study:
    return open_study(bundle, f"{blocks}:train", load_dataset(f"{blocks}:val"), 16)


@dataclass(frozen=True)
class Spoilt:
    """A study of a bundle with one bad layer, whose layers were ranked once for all tests."""

    bundle: Bundle
    culprit: str
    study: Study
    calibrated: Calibrated
    ranking: list[Damage]


@pytest.fixture(scope="module")
def spoilt(trained_bundle: Path, blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Spoilt:
    folder = tmp_path_factory.mktemp("spoilt") / "blocks.bundle"
    shutil.copytree(trained_bundle, folder)
    bundle, culprit = with_a_layer_that_quantises_badly(open_bundle(folder))
    study = study_of(bundle, blocks)
    calibrated = choose_calibrator(study, ["minmax"])
    return Spoilt(bundle, culprit, study, calibrated, rank_layers(study, calibrated.quantise))


@pytest.fixture
def ranked(spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch) -> Spoilt:
    """With the ranking that takes long not made again."""
    monkeypatch.setattr(int8, "rank_layers", lambda *_: spoilt.ranking)
    return spoilt


def test_the_layer_that_hurts_is_found_and_only_it_stays_in_float(ranked: Spoilt) -> None:
    study, calibrated, culprit = ranked.study, ranked.calibrated, ranked.culprit
    assert calibrated.drops["minmax"] > 5
    assert ranked.ranking[0].layer.node == culprit
    outcome = int8.calibrate_tensorrt(study, calibrated, 1.0, half=False)
    assert outcome.accepted, outcome.reason
    assert outcome.figures["nodes_in_float"] == [culprit]
    assert outcome.figures["layers_in_float"] == ["heads.segmentation.classify"]
    assert outcome.figures["drop"] <= 1.0
    assert outcome.figures["macs_int8"] > 0.9 * int8.int8_share(study, ())


def test_a_file_that_misses_its_budget_is_refused_and_the_bundle_says_so(
    ranked: Spoilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "LEAST_MACS", 1.0)
    outcomes = {"int8": int8.calibrate_tensorrt(ranked.study, ranked.calibrated, 1.0)}
    assert not outcomes["int8"].accepted
    assert "gains nothing over FP16" in outcomes["int8"].reason
    kept = store(ranked.bundle, outcomes)
    assert not kept.has("model.int8.onnx")
    section = read_record(kept)["int8"]
    assert section["accepted"] is False and section["reason"] == outcomes["int8"].reason
    assert section["sensitivity"] and section["trials"]


def test_a_budget_that_no_number_of_float_layers_keeps_is_refused(
    ranked: Spoilt,
) -> None:
    outcome = int8.calibrate_tensorrt(ranked.study, ranked.calibrated, -50.0)
    assert not outcome.accepted
    assert "points at the least, -50 allowed" in outcome.reason


def test_the_search_is_short_and_ends_at_the_fewest() -> None:
    layers = some_layers(100)
    ranking = [Damage(layer, 1.0, 1.0) for layer in layers]

    def score(kept: Any) -> dict[str, float]:
        return {"miou": 1.0 if len(kept) >= 37 else 0.5}

    found = fewest_in_float(lambda kept: kept, ranking, score, {"miou": 1.0}, 0.5)  # type: ignore[arg-type]
    assert found.in_float is not None and len(found.in_float) == 37
    assert found.in_float == {layer.node for layer in layers[:37]}
    assert len(found.trials) < 15


def some_layers(count: int) -> list[Layer]:
    return [Layer(f"n{i}", f"layer{i}", "Conv", 1) for i in range(count)]


def test_the_cpu_file_is_kept_only_where_it_is_faster(
    bundle: Bundle, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(bundle, blocks)
    calibrated = choose_calibrator(study, ["minmax"])
    monkeypatch.setattr(int8, "latency_ratio", lambda *_: 1.3)
    slow = calibrate_cpu(study, calibrated, [], 5.0)
    assert not slow.accepted and "1.30 of FP32's time" in slow.reason
    monkeypatch.setattr(int8, "latency_ratio", lambda *_: 0.7)
    fast = calibrate_cpu(study, calibrated, [], 5.0)
    assert fast.accepted and fast.figures["latency_ratio"] == 0.7
    kept = store(bundle, {"int8-cpu": fast})
    assert kept.has("model.int8-cpu.onnx")
    assert not store(open_bundle(kept.path), {"int8-cpu": slow}).has("model.int8-cpu.onnx")


def test_a_time_ratio_is_of_the_two_networks(bundle: Bundle, blocks: Path) -> None:
    study = study_of(bundle, blocks)
    inputs = {"image": study.frames[0][None], "adapter": study.adapter}
    assert int8.latency_ratio(study.model, study.model, inputs) > 0


def test_confidence_is_recalibrated_on_frames_it_was_not_fitted_to(
    bundle: Bundle, blocks: Path
) -> None:
    study = study_of(bundle, blocks)
    make = calibrate_with("minmax", study.model, study.frames, study.adapter)
    model, report = int8.recalibrate(study, make())
    row = report["detection"]
    assert row["ece_after"] < row["ece_before"] or row["temperature"] == 1.0
    names = {node.name for node in model.graph.node}
    assert ("detection_temperature" in names) == (row["temperature"] != 1.0)
    without = open_study(bundle, f"{blocks}:train", None, 16)
    assert int8.recalibrate(without, make())[1] == {}


def test_the_kept_file_is_the_one_that_was_judged(bundle: Bundle, blocks: Path) -> None:
    study = study_of(bundle, blocks)
    outcomes = calibrate(study, None, ["minmax", "percentile-99.999"], cpu=False)
    outcome = outcomes["int8"]
    assert outcome.accepted, outcome.reason
    kept = store(bundle, outcomes)
    shipped = onnx.load(kept.file("model.int8.onnx"))
    assert study.judge(rounded(shipped))["miou"] == outcome.figures["after"]["segmentation"]["miou"]
    types = {t.data_type for t in shipped.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types and outcome.figures["rest"] == "fp16"
    section = read_record(kept)["int8"]
    assert section["frames_digest"] == study.frames_digest and section["budget"] == 1.0
    assert set(section["calibrator_drops"]) == {"minmax", "percentile-99.999"}
    assert kept.manifest.created == bundle.manifest.created


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"int8": 3}', b"\xff\xfe"])
def test_a_broken_record_is_refused_and_the_bundle_kept(bundle: Bundle, content: bytes) -> None:
    broken = update_bundle(bundle, {"calibration.json": content})
    with pytest.raises(BundleError, match=r"calibration\.json"):
        read_record(broken)
    assert open_bundle(broken.path).file("calibration.json").read_bytes() == content


def test_update_keeps_what_it_is_not_told_to_change(bundle: Bundle) -> None:
    before = json.loads((bundle.path / "manifest.json").read_text())
    after = update_bundle(bundle, {"calibration.json": b"{}"})
    files = after.manifest.files
    assert set(files) == {*before["files"], "calibration.json"}
    assert files["model.onnx"].sha256 == before["files"]["model.onnx"]["sha256"]
    assert not update_bundle(after, {"calibration.json": None}).has("calibration.json")


def test_update_does_not_launder_a_tampered_file(bundle: Bundle) -> None:
    path = bundle.file("model.onnx")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        update_bundle(bundle, {"calibration.json": b"{}"})
