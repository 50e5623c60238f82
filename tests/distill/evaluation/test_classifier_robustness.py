"""Robustness of fine-tuned classifiers, and of an encoder relative to one."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from distill.cli import main
from distill.data.class_folders import open_classified
from distill.evaluation.image_classifiers import tuned_run
from distill.evaluation.robustness import JudgedImages, adversarial_accuracy, as_input
from edge_runtime.errors import InputError


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, coloured):
    """A classifier of colours, fine-tuned through the command line."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    words = ["finetune", "--task", "classification", "--data", str(coloured), "--student",
             "test_resnet", "--out", str(folder), "size=[32,32]", "epochs=12", "batch_size=12",
             "workers=0", "lr=0.003", "colour=0", "ema=0"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fieldsight-distill", *words])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code
    return folder


def test_the_classifier_of_a_run_is_the_one_that_evaluate_judges(tuned, coloured):
    classifier = tuned_run(tuned, torch.device("cpu"))
    assert classifier.classes == ["blue", "green", "red"] and classifier.size == (32, 32)
    source = open_classified(str(coloured))
    images = JudgedImages.of(source, torch.arange(0, 60, 4).numpy(), classifier.size)
    with torch.no_grad():
        right = (classifier.classify(as_input(images.images)).argmax(1) == images.labels).float()
    assert right.mean() > 0.8
    found = adversarial_accuracy(classifier.classify, images, 0.2)
    assert found["clean"] == pytest.approx(float(right.mean())) and found["pgd"] < found["clean"]


def test_a_run_and_an_encoder_relative_to_it(tuned, coloured, tmp_path, command_line):
    json_file = tmp_path / "figures.json"
    code, out, err = command_line(
        main, "fieldsight-distill", "evaluate", tuned, "--data", coloured, "--robustness",
        "--robustness-images", "2", "--baseline", tuned, "--json", json_file,
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(json_file.read_text())["robustness"]
    assert found["images"] == 2 and len(found["error"]) == 15
    assert found["mce"] is None or found["mce"] == pytest.approx(1)
    assert "adversarial.pgd" in out
    code, out, err = command_line(
        main, "fieldsight-distill", "evaluate", "test_resnet@random", "--size", "32x32", "--views",
        "2", "--data", coloured, "--robustness", "--robustness-images", "2", "--baseline", tuned,
        "--json", json_file,
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(json_file.read_text())["robustness"]["baseline"]["name"] == str(tuned)


def test_a_baseline_that_is_no_classifier_is_named(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        tuned_run(tmp_path, torch.device("cpu"))
