from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.confidence import (
    Predictions,
    collect_predictions,
    expected_calibration_error,
    fit_temperature,
    set_temperature,
)
from calibration.network import open_session
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.datasets import load_dataset


def test_calibration_error_of_known_cases() -> None:
    right = np.array([True, True, False, False])
    assert expected_calibration_error(np.full(4, 0.5), right) == pytest.approx(0)
    assert expected_calibration_error(np.full(4, 0.9), right) == pytest.approx(0.4)
    mixed = np.array([0.95, 0.95, 0.05, 0.05])
    assert expected_calibration_error(mixed, right) == pytest.approx(0.05)
    assert expected_calibration_error(np.empty(0), np.empty(0, bool)) == 0


@pytest.mark.parametrize("true", [0.6, 1.0, 1.8])
def test_the_temperature_that_made_confidence_wrong_is_found(true: float) -> None:
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, (40_000, 3))
    share = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    truth = (share.cumsum(axis=1) > random.random((len(share), 1))).argmax(axis=1)
    found = Predictions(honest * true, honest.argmax(axis=1) == truth)
    assert fit_temperature(found) == pytest.approx(true, rel=0.05)
    binary = random.normal(0, 2, 40_000)
    right = random.random(40_000) < 1 / (1 + np.exp(-binary))
    assert fit_temperature(Predictions(binary * true, right)) == pytest.approx(true, rel=0.05)


def test_nothing_is_learned_from_nothing() -> None:
    assert fit_temperature(Predictions(np.empty(0), np.empty(0, bool))) == 1
    assert fit_temperature(Predictions(np.ones(3), np.ones(3, bool))) == 1


def test_a_temperature_changes_confidence_and_nothing_else(bundle: Bundle, blocks: Path) -> None:
    model = onnx.load(bundle.file("model.onnx"))
    warm = set_temperature(model, "detection", 2.0)
    onnx.checker.check_model(warm)
    spec = bundle.manifest.input
    image = np.random.default_rng(0).integers(0, 256, (1, spec.height, spec.width, 3), np.uint8)
    inputs = {"image": image, "adapter": identity_adapter(bundle.manifest)}
    names = [output.name for output in model.graph.output]
    cold_out, warm_out = (
        dict(zip(names, open_session(m).run(names, inputs), strict=True)) for m in (model, warm)
    )
    odds = np.log(cold_out["scores"] / (1 - cold_out["scores"]))
    assert warm_out["scores"] == pytest.approx(1 / (1 + np.exp(-odds / 2)), abs=1e-4)
    for name in ("boxes", "labels", "mask", "statistics"):
        assert (cold_out[name] == warm_out[name]).all(), name


def test_predictions_are_judged_by_the_labels(bundle: Bundle, blocks: Path) -> None:
    data = load_dataset(f"{blocks}:val")
    found = collect_predictions(bundle, onnx.load(bundle.file("model.onnx")), data, range(6))
    assert set(found) == {"detection"}, "the bundle publishes no mask confidence"
    scores, right = found["detection"].confidences(), found["detection"].right
    assert right.sum() == 6, "each of the six frames has one block, and the student finds it"
    assert scores[right].min() > np.median(scores[~right])
