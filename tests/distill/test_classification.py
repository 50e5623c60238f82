"""Classification from few labels: modes, mixing, unlabelled images; through the command line."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from distill.classification import open_classes, stratified
from distill.cli import main
from distill.encoders import Encoder, EncoderSpec
from distill.settings import FinetuneSettings
from distill.tasks.classification import Classifier, MixedLoss, StrongImage, class_means

PROGRAM = "fieldsight-distill"
SMALL = ["size=[32,32]", "batch_size=8", "workers=0", "ema=0.9", "colour=0", "--accelerator", "cpu",
         "--student", "test_efficientnet"]  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of 20 discs and 20 crosses of any colour, a subfolder each."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for name in ("cross", "disc"):
        (folder / name).mkdir()
        for i in range(20):
            image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            colour = [int(c) for c in rng.integers(120, 255, 3)]
            if name == "disc":
                cv2.circle(image, (16, 16), 9, colour, -1)
            else:
                cv2.line(image, (4, 4), (28, 28), colour, 2)
                cv2.line(image, (28, 4), (4, 28), colour, 2)
            cv2.imwrite(str(folder / name / f"{i}.png"), image)
    return folder


def call(command_line, *words):
    code, said, wrong = command_line(main, PROGRAM, *words)
    return code, " ".join((said + wrong).split())


def accuracy(command_line, run, data, tmp_path):
    code, said = call(
        command_line, "evaluate", run, "--data", data, "--json", tmp_path / "f.json")  # fmt: skip
    assert code == 0, said
    return json.loads((tmp_path / "f.json").read_text())["classification"]["accuracy"]


@pytest.mark.parametrize(
    "words",
    [
        ["epochs=12", "lr=0.01"],
        ["epochs=12", "lr=0.01", "mix=manifold", "mix_alpha=0.5"],
        ["epochs=1", "--mode", "prototype"],
        ["epochs=20", "lr=0.01", "--mode", "linear"],
    ],
    ids=["full", "manifold", "prototype", "linear"],
)
def test_every_mode_learns_and_is_judged(shapes, tmp_path, command_line, words):
    run = tmp_path / "run"
    code, said = call(
        command_line, "finetune", "--task", "classification", "--data", shapes, "--labels", "60%",
        "--out", run, *SMALL, *words)  # fmt: skip
    assert code == 0 and "evaluate" in said, said
    assert json.loads((run / "summary.json").read_text())["images"] == 24
    least = 0.9 if "--mode" not in words else 0.6  # the trunk of these is random
    assert accuracy(command_line, run, shapes, tmp_path) > least
    code, said = call(command_line, "export", run, "--data", shapes, "--out", tmp_path / "x.bundle")
    assert code == 2


def test_in_linear_mode_the_trunk_stays(shapes, tmp_path, command_line):
    from safetensors.torch import load_file

    runs = [tmp_path / str(k) for k in range(2)]
    for run, epochs in zip(runs, (1, 4), strict=True):
        call(command_line, "finetune", "--task", "classification", "--data", shapes, "--out", run,
             *SMALL, "--mode", "linear", f"epochs={epochs}")  # fmt: skip
    first, second = (load_file(run / "student.safetensors") for run in runs)
    moved = {k.split(".")[0] for k in first if not torch.equal(first[k], second[k])}
    assert moved == {"classify"}


def test_unlabelled_images_take_part(shapes, tmp_path, command_line):
    run = tmp_path / "run"
    code, said = call(
        command_line, "finetune", "--task", "classification", "--data", shapes, "--labels", "8",
        "--unlabelled", shapes, "--out", run, *SMALL, "epochs=30", "lr=0.01",
        "semi.ratio=2", "semi.threshold=0.8")  # fmt: skip
    assert code == 0, said
    log = (run / "metrics.csv").read_text()
    assert "train/unlabelled" in log and "train/confident" in log
    confident = [line.split(",") for line in log.splitlines()]
    column = confident[0].index("train/confident")
    assert max(float(row[column]) for row in confident[1:] if row[column]) > 0.2
    assert accuracy(command_line, run, shapes, tmp_path) > 0.8


def test_shares_are_stratified_and_nested(cifar10):
    images, names = open_classes(str(cifar10 / "cifar10-test-0000.tar"))
    assert names[:3] == ["airplane", "automobile", "bird"] and len(images) == 3000
    labels = np.array([images.label(i) for i in range(len(images))])
    parts = {a: stratified(images, a, 10, seed=3) for a in ("1%", "10%", "100%", None)}
    assert [len(p) for p in parts.values()] == [30, 300, 3000, 3000]
    assert set(parts["1%"]) <= set(parts["10%"])
    for amount, share in (("1%", 0.01), ("10%", 0.1)):
        counts = np.bincount(labels[parts[amount]], minlength=10)
        assert np.abs(counts - share * np.bincount(labels)).max() <= 1.5
        assert counts.min() >= 1
    assert (stratified(images, "10%", 10, seed=3) == parts["10%"]).all()
    assert (stratified(images, "10%", 10, seed=4) != parts["10%"]).any()


def test_class_means_are_the_nearest_means_of_numpy(shapes):
    images, _ = open_classes(str(shapes))
    torch.manual_seed(0)
    model = Classifier(Encoder(EncoderSpec("test_efficientnet")), 2, cosine=True).eval()
    rows = np.arange(40)
    means = class_means(model, images, rows, (32, 32), batch=7)
    with torch.no_grad():
        pictures = torch.from_numpy(np.stack([images.read(i) for i in rows]))
        features = model.features(pictures).numpy()
    labels = np.array([images.label(i) for i in rows])
    for c in range(2):
        mean = features[labels == c].mean(0)
        np.testing.assert_allclose(means[c].numpy(), mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "manifold"])
def test_mixing_alike_images_of_one_class_changes_nothing(mix):
    torch.manual_seed(0)
    model = Classifier(Encoder(EncoderSpec("test_efficientnet")), 3).eval()
    image = torch.randint(0, 255, (1, 32, 32, 3), dtype=torch.uint8).expand(4, -1, -1, -1)
    label = torch.full((4,), 2)
    plain = MixedLoss(FinetuneSettings(), 3)(model, image, label)
    for _ in range(4):
        mixed = MixedLoss(FinetuneSettings(mix=mix), 3)(model, image, label)
        torch.testing.assert_close(mixed, plain, rtol=1e-4, atol=1e-5)


def test_manifold_mixing_mixes_features_and_targets():
    torch.manual_seed(1)
    model = Classifier(Encoder(EncoderSpec("test_efficientnet")), 2).eval()
    assert len(model.mixing_points()) >= 3
    image = torch.stack([torch.zeros(32, 32, 3), torch.full((32, 32, 3), 255.0)]).to(torch.uint8)
    label = torch.tensor([0, 1])
    plain = MixedLoss(FinetuneSettings(), 2)(model, image, label).item()
    mixing = MixedLoss(FinetuneSettings(mix="manifold"), 2)
    values = {round(mixing(model, image, label).item(), 5) for _ in range(12)}
    assert len(values) > 3 and any(abs(v - plain) > 1e-4 for v in values)
    vit = Classifier(Encoder(EncoderSpec("test_vit")), 2)
    resnet = Classifier(Encoder(EncoderSpec("resnet10t")), 2)
    assert len(vit.mixing_points()) >= 3 and len(resnet.mixing_points()) == 4


def test_strong_views_follow_their_generator_alone():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    strong = StrongImage()
    state = torch.get_rng_state()
    views = [strong(image, np.random.default_rng(s)) for s in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any() and (views[0] != image).any()


def test_wrong_input_is_named(shapes, tiny, tmp_path, command_line):
    base = ["finetune", "--task", "classification", "--out", tmp_path / "run", *SMALL]
    other = tmp_path / "other"
    for name in ("cross", "square"):
        (other / name).mkdir(parents=True)
        cv2.imwrite(str(other / name / "a.png"), np.zeros((8, 8, 3), np.uint8))
    for words, message in (
        (["--data", shapes, "--labels", "1"], "one a class at least"),
        (["--data", shapes, "--labels", "many"], "is no amount"),
        (["--data", tiny.yaml], "have no class"),
        (["--data", shapes, "--head", "unet"], "trained alone"),
        (["--data", shapes, "--val", other], "was to have"),
        (["--data", shapes, "--mode", "prototype", "--unlabelled", shapes], "class means"),
        (["--data", shapes, "mix=mixupp"], "mix"),
        (["--data", shapes, "--encoder", tmp_path / "none.safetensors"], "not found"),
    ):
        code, said = call(command_line, *base, *words)
        assert code == 2 and message in said, (words, said)
    run = tmp_path / "good"
    call(command_line, "finetune", "--task", "classification", "--data", shapes, "--out", run,
         *SMALL, "--mode", "prototype")  # fmt: skip
    code, said = call(command_line, "evaluate", run, "--data", other)
    assert code == 2 and "knows the classes" in said
