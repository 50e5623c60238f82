from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.confidence import (
    Predictions,
    collect_predictions,
    expected_calibration_error,
    fit_temperature,
    set_temperature,
)
from calibration.network import expose, open_session
from distill.graph import identity, write_onnx
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.datasets import load_dataset
from edge_runtime.student import Student


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


def test_a_masks_confidence_is_the_largest_softmax_value_and_can_be_tempered(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    student = Student("mobilenetv4_conv_small", {"segmentation": 5}).eval()
    with torch.no_grad():
        for last in student.heads["segmentation"].parameters():
            last.mul_(3)  # logits far enough apart to tell temperatures
    write_onnx(student, (96, 128), tmp_path / "model.onnx", mask_confidence=True)
    model = onnx.load(tmp_path / "model.onnx")
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), np.uint8)
    inputs = {"image": image, "adapter": identity(student).numpy()}
    resized = [node.output[0] for node in model.graph.node if node.op_type == "Resize"][-1]
    logits, found = open_session(expose(model, [resized, "mask_confidence"])).run(
        [resized, "mask_confidence"], inputs
    )
    assert logits.shape == (1, 5, 48, 64)
    assert np.ptp(found) > 0.05
    for temperature in (1.0, 2.0):
        warm = set_temperature(model, "segmentation", temperature)
        expected = torch.from_numpy(logits / temperature).softmax(1).amax(1)[0].numpy()
        (told,) = open_session(warm).run(["mask_confidence"], inputs)
        np.testing.assert_allclose(told, expected, atol=1e-5)


def test_predictions_are_judged_by_the_labels(bundle: Bundle, blocks: Path) -> None:
    data = load_dataset(f"{blocks}:val")
    found = collect_predictions(bundle, onnx.load(bundle.file("model.onnx")), data, range(6))
    assert set(found) == {"detection"}, "the bundle publishes no mask confidence"
    scores, right = found["detection"].confidences(), found["detection"].right
    assert right.sum() == 6, "each of the six frames has one block, and the student finds it"
    assert scores[right].min() > np.median(scores[~right])
