"""Corruptions, mean corruption error and attacks, where the answer is known."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from distill.data.class_folders import open_classified
from distill.evaluation.attacks import fgsm, pgd
from distill.evaluation.corruptions import (
    CORRUPTIONS,
    CorruptionErrors,
    corrupted,
    corruption_errors,
    corruption_figures,
    mean_corruption_error,
)
from distill.evaluation.features import extract
from distill.evaluation.linear import fit_linear
from distill.evaluation.model_robustness import model_robustness
from distill.evaluation.robustness import (
    CorruptedDataset,
    JudgedImages,
    ProbedEncoder,
    adversarial_accuracy,
    as_input,
    classification_errors,
)
from edge_runtime.datasets import open_data
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result, Segmentation

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def distance(name: str, severity: int) -> float:
    smooth = np.repeat(np.repeat(IMAGE[::8, ::8], 8, 0), 8, 1)
    spoilt = corrupted(smooth, name, severity)
    return float(np.sqrt(np.mean((spoilt.astype(float) - smooth) ** 2)))


def test_the_corruptions_are_the_fifteen_common_ones():
    from imagecorruptions import get_corruption_names

    assert list(CORRUPTIONS) == get_corruption_names("common")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_the_size_and_follows_seed_and_index(name):
    state = np.random.get_state()[1].copy()
    first = corrupted(IMAGE, name, 3, index=4, seed=9)
    assert first.shape == IMAGE.shape and first.dtype == np.uint8
    assert not np.array_equal(first, IMAGE)
    np.random.random(5)
    np.testing.assert_array_equal(corrupted(IMAGE, name, 3, index=4, seed=9), first)
    plain = {"defocus_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "zoom_blur"}
    other = corrupted(IMAGE, name, 3, index=5, seed=9)
    assert np.array_equal(other, first) == (name in plain)
    np.random.set_state(("MT19937", state, 624, 0, 0.0))


@pytest.mark.slow
def test_compiled_glass_blur_is_the_same_in_every_process():
    code = (
        "import numpy as np, zlib; from distill.evaluation.corruptions import corrupted; "
        "x = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8); "
        "print(zlib.crc32(corrupted(x, 'glass_blur', 3, 4, 9).tobytes()))"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_numpys_generator_is_left_as_it_was():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    corrupted(IMAGE, "gaussian_noise", 2)
    assert np.random.random() == expected


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "defocus_blur", "contrast"])
def test_higher_severity_changes_more(name):
    found = [distance(name, severity) for severity in (1, 3, 5)]
    assert found == sorted(found) and found[0] > 1


def test_images_and_names_that_cannot_be_corrupted_are_named():
    with pytest.raises(InputError, match="20x40 pixels is too small"):
        corrupted(IMAGE[:, :20], "fog", 1)
    with pytest.raises(InputError, match="no corruption 'rain' of severity 1"):
        corrupted(IMAGE, "rain", 1)
    with pytest.raises(InputError, match="severity 6"):
        corrupted(IMAGE, "fog", 6)


def table(clean: float, **errors: list[float]) -> CorruptionErrors:
    return CorruptionErrors(clean, errors)


def test_mean_corruption_error_is_relative_to_the_baseline_corruption_by_corruption():
    own = table(0.1, fog=[0.1, 0.1, 0.2, 0.2, 0.4], snow=[0.3] * 5)
    base = table(0.2, fog=[0.4] * 5, snow=[0.2] * 5)
    assert mean_corruption_error(own, own) == (pytest.approx(1), [])
    assert mean_corruption_error(own, base)[0] == pytest.approx((1.0 / 2.0 + 1.5 / 1.0) / 2)
    assert own.mean == pytest.approx(0.25)
    assert own.retained == pytest.approx(0.75 / 0.9)
    figures = corruption_figures(own, base)
    assert figures["mce"] == pytest.approx(1.0) and figures["baseline"]["clean_error"] == 0.2
    assert corruption_figures(table(1.0, fog=[1.0] * 5))["retained"] is None


def test_what_the_baseline_never_gets_wrong_is_left_out_and_named():
    own = table(0.1, fog=[0.5] * 5, snow=[0.3] * 5)
    perfect_in_fog = table(0.0, fog=[0.0] * 5, snow=[0.1] * 5)
    assert mean_corruption_error(own, perfect_in_fog) == (pytest.approx(3), ["fog"])
    assert corruption_figures(own, perfect_in_fog)["mce_without"] == ["fog"]
    perfect = table(0.0, fog=[0.0] * 5, snow=[0.0] * 5)
    assert mean_corruption_error(own, perfect) == (None, ["fog", "snow"])


def test_every_corruption_and_severity_is_judged_once():
    seen = []

    def error(corrupt) -> float:
        seen.append(float(np.abs(corrupt(IMAGE, 0).astype(float) - IMAGE).mean()))
        return 0.5

    names = ("fog", "pixelate")
    found = corruption_errors(error, progress=False, names=names)
    assert seen[0] == 0 and len(seen) == 11 and len(set(seen)) == 11
    assert found.errors == {name: [0.5] * 5 for name in names}


class Linear(torch.nn.Module):
    """Two classes; the margin is w . x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(48, generator=torch.Generator().manual_seed(0)))

    def margin(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5).flatten(1) @ self.w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = self.margin(x)
        return torch.stack([-margin / 2, margin / 2], 1)


def test_attacks_on_a_linear_model_cost_epsilon_times_the_l1_norm():
    model = Linear()
    x = 0.3 + 0.4 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.ones(6, dtype=torch.int64)
    cost = 0.05 * model.w.abs().sum()
    for attacked in (fgsm(model, x, labels, 0.05), pgd(model, x, labels, 0.05)):
        torch.testing.assert_close(model.margin(attacked), model.margin(x) - cost)
    assert model.w.grad is None


def test_attacks_stay_near_the_image_and_within_its_range():
    model = Linear()
    x = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)).round()
    labels = torch.zeros(6, dtype=torch.int64)
    for attacked in (fgsm(model, x, labels, 0.1), pgd(model, x, labels, 0.1, steps=4)):
        assert float((attacked - x).abs().max()) <= 0.1 + 1e-6
        assert 0 <= float(attacked.min()) and float(attacked.max()) <= 1
    assert torch.equal(fgsm(model, x, labels, 0.0), x)
    assert torch.equal(pgd(model, x, labels, 0.0), x)


@pytest.fixture
def judged(coloured, encoder):
    """A probe on colours that is right on most, and the images to judge it by."""
    source = open_classified(str(coloured))
    found = extract(encoder, source, (32, 32), progress=False)
    probe = fit_linear(found.pooled, found.labels)
    images = JudgedImages.of(source, found.indices[::2], (32, 32))
    return ProbedEncoder(encoder, probe), images, probe, found


def test_the_classifier_is_encoder_and_probe_in_one(judged):
    classify, images, probe, found = judged
    with torch.no_grad():
        logits = classify(as_input(images.images))
    torch.testing.assert_close(logits, probe.logits(found.pooled[::2]), atol=1e-3, rtol=1e-3)


def test_a_stronger_attack_leaves_less(judged):
    classify, images, *_ = judged
    weak = adversarial_accuracy(classify, images, 0.002)
    strong = adversarial_accuracy(classify, images, 0.2)
    assert weak["clean"] == strong["clean"] > 0.9
    assert strong["pgd"] <= strong["fgsm"] and strong["pgd"] < 0.3 < weak["pgd"]


def test_errors_of_a_classifier_under_corruption(judged, monkeypatch):
    classify, images, *_ = judged
    monkeypatch.setattr("distill.evaluation.robustness._BATCH", 7)
    few = dataclasses.replace(images, images=images.images[::10], labels=images.labels[::10])
    found = classification_errors(classify, few, progress=False)
    assert set(found.errors) == set(CORRUPTIONS) and found.clean < 0.2
    assert all(0 <= e <= 1 for errors in found.errors.values() for e in errors)
    # The classes are colours: grey fog hides them, small blocks of one colour do not.
    assert found.errors["fog"][4] > found.errors["pixelate"][0] == found.clean
    again = classification_errors(classify, few, progress=False)
    assert again == found


def test_images_without_class_cannot_be_judged(coloured):
    source = open_classified(str(coloured / "red"))
    with pytest.raises(InputError, match="a class for every image"):
        JudgedImages.of(source, np.arange(3), (32, 32))


def test_a_dataset_is_judged_through_its_corrupted_frames(camvid):
    data = open_data(f"{camvid}:val")
    spoilt = CorruptedDataset.of(data, lambda image, index: corrupted(image, "fog", 3, index))
    clean, foggy = data.read(2), spoilt.read(2)
    np.testing.assert_array_equal(foggy.image, corrupted(clean.image, "fog", 3, 2))
    np.testing.assert_array_equal(foggy.mask, clean.mask)
    assert len(spoilt) == len(data) and spoilt.segmentation_classes == data.segmentation_classes


class RedIsThing:
    """Perception by colour: a pixel is class 1 where red outweighs blue."""

    def classes(self, task: str) -> list[str]:
        return ["floor", "thing"] if task == "segmentation" else []

    def __call__(self, frame: Frame) -> Result:
        red, blue = frame.image[..., 0].astype(int), frame.image[..., 2].astype(int)
        mask = (red > blue).astype(np.uint8)
        return Result(frame.stamp_ns, frame.frame_id, None, Segmentation(mask), None)


def test_what_perceives_frames_is_judged_by_its_miou(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[10:40, 20:50] = 1
    image = np.where(mask[..., None], np.uint8([200, 60, 60]), np.uint8([60, 60, 200]))
    for name in "abc":
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image[..., ::-1])
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    (tmp_path / "dataset.yaml").write_text(
        "name: reds\nsplits: {val: {images: images, masks: masks}}\n"
        "segmentation: {classes: [floor, thing]}\n"
    )
    data = open_data(f"{tmp_path / 'dataset.yaml'}:val")
    found = model_robustness(RedIsThing(), data, RedIsThing(), limit=1, progress=False)
    assert found["metric"] == "segmentation.miou" and found["images"] == 1
    assert found["clean_error"] == 0 and found["error"]["contrast"][0] == 0
    assert found["error"]["glass_blur"][4] > 0.02  # the outline is shuffled
    assert found["mce"] == pytest.approx(1) and "brightness" in found["mce_without"]
