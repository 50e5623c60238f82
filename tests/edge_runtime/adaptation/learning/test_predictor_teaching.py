"""Teaching a predictor: looks that follow from a seed, one network in torch and numpy, a gain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill.cli import main
from distill.data.looks import Look
from distill.predictor import PaintedFrames, PredictorNetwork
from edge_runtime.adaptation.descriptor import SIZE, describe
from edge_runtime.adaptation.network import load_student, run
from edge_runtime.adaptation.predicted import PredictedAlignment
from edge_runtime.adaptation.predictor import FILE, Predictor
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.strategies import create_strategy
from edge_runtime.bundle import Bundle, identity_adapter, open_bundle, update_bundle
from edge_runtime.datasets import load_dataset
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception


@pytest.fixture
def copied(student_bundle: Bundle, tmp_path: Path) -> Bundle:
    path = tmp_path / "taught.bundle"
    shutil.copytree(student_bundle.path, path)
    return open_bundle(path)


def frames(count: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 64, 3), dtype=np.uint8)


def test_looks_follow_from_their_seed_and_reach_far() -> None:
    image, darkest, brightest, same = np.full((32, 64, 3), 128, np.uint8), 255.0, 0.0, 0
    for seed in range(300):
        look = Look.draw(np.random.default_rng(seed))
        found = look(image, np.random.default_rng(1))
        again = Look.draw(np.random.default_rng(seed))(image, np.random.default_rng(1))
        assert found.dtype == np.uint8 and found.shape == image.shape and (found == again).all()
        darkest, brightest = min(darkest, found.mean()), max(brightest, found.mean())
        same += int((found == image).all())
    assert darkest < 15 and brightest > 200 and 10 < same < 120


def test_a_look_that_changes_nothing_leaves_every_pixel() -> None:
    for image in frames():
        assert (Look(np.ones(3))(image, np.random.default_rng(0)) == image).all()


def test_an_item_follows_from_epoch_and_index_alone() -> None:
    one, other = PaintedFrames(frames(), 3), PaintedFrames(frames(), 3)
    for key in ((0, 0), (0, 7), (2, 5)):
        a, b = one[key], other[key]
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["descriptor"], b["descriptor"])
        assert a["index"] == key[1] and a["descriptor"].shape == (SIZE,)
    assert not torch.equal(one[(0, 3)]["descriptor"], one[(1, 3)]["descriptor"])


def test_torch_and_numpy_compute_the_same_adapter(copied: Bundle) -> None:
    torch.manual_seed(1)
    descriptors = np.stack([describe(image) for image in frames()])
    network = PredictorNetwork(Reference.of(copied), descriptors, 16)
    with torch.no_grad():
        changes_nothing = network(torch.from_numpy(descriptors))
    assert changes_nothing.numpy() == pytest.approx(
        np.tile(identity_adapter(copied.manifest), (8, 1)), abs=1e-6
    )
    torch.nn.init.normal_(network.layers[-1].weight, std=0.5)
    predictor = Predictor.of(update_bundle(copied, {FILE: save(network.arrays())}))
    assert predictor is not None
    far = np.concatenate([descriptors, 1e3 * descriptors])
    with torch.no_grad():
        expected = network(torch.from_numpy(far)).numpy()
    for descriptor, adapter in zip(far, expected, strict=True):
        assert predictor(descriptor) == pytest.approx(adapter, abs=1e-4)


def test_its_moving_average_computes_the_same(copied: Bundle) -> None:
    descriptors = np.stack([describe(image) for image in frames()])
    network = PredictorNetwork(Reference.of(copied), descriptors, 16)
    torch.nn.init.normal_(network.layers[-1].weight, std=0.5)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    for _ in range(3):
        average.update_parameters(network)
    with torch.no_grad():
        given = torch.from_numpy(descriptors)
        torch.testing.assert_close(average.module(given), network(given), rtol=1e-4, atol=1e-4)


def test_every_image_of_a_batch_may_have_an_adapter_of_its_own(copied: Bundle) -> None:
    student = load_student(copied)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    adapters = torch.from_numpy(identity_adapter(copied.manifest)).repeat(2, 1)
    adapters[1] *= 0.7
    with torch.no_grad():
        both = run(student, images, adapters)
        assert both.segmentation is not None
        for index in range(2):
            alone = run(student, images[index : index + 1], adapters[index])
            assert alone.segmentation is not None
            assert torch.allclose(both.segmentation[index], alone.segmentation[0], atol=1e-4)


def known(bundle: Bundle, data: Path) -> tuple[float, float]:
    """Share of a dataset's pixels that are known as trained, and under the predicted adapter."""
    perception, predictor, right = Perception(bundle, threads=1), Predictor.of(bundle), []
    assert predictor is not None
    frames = [load_dataset(f"{data}:all").read(index) for index in range(8)]
    looks = np.mean([describe(frame.image) for frame in frames], axis=0)
    for adapter in (identity_adapter(bundle.manifest), predictor(looks)):
        perception.adapter = adapter
        masks = [perception(Frame(frame.image, 0, "")).segmentation for frame in frames]
        right.append(np.mean([m.mask == f.mask for m, f in zip(masks, frames, strict=True) if m]))
    return float(right[0]), float(right[1])


def test_the_command_teaches_resumes_and_is_used(
    copied: Bundle, world: Path, dim_world: Path, tmp_path: Path, command_line
) -> None:
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    words = ["x", "predictor", copied.path, "--data", f"{world}:all", "--out", out]
    words += ["--json", figures, "epochs=200", "probe_every=200", "batch_size=8", "workers=0"]
    code, _, said = command_line(main, *words)
    assert code == 0, said
    taught = open_bundle(copied.path)
    assert isinstance(create_strategy("align", taught), PredictedAlignment)
    summary = json.loads(figures.read_text())
    assert summary["labelled"] and summary["frames"] == 15
    assert set(summary["probe"]) == {"as_trained", "adapted"}
    plain, adapted = known(taught, dim_world)
    # Of what darkness costs; how much that is depends on the processor that trained the student.
    assert plain < 0.9 and adapted > plain + 0.4 * (1 - plain)
    content = (taught.path / FILE).read_bytes()
    assert {p.name for p in out.iterdir()} >= {"checkpoint.pt", "metrics.csv", "summary.json"}
    code, _, said = command_line(main, *words, "--resume")
    assert code == 0, said
    assert (taught.path / FILE).read_bytes() == content


def test_too_few_frames_are_refused_and_the_bundle_is_left_alone(
    copied: Bundle, tmp_path: Path, command_line
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    before = sorted(p.name for p in copied.path.iterdir())
    code, _, said = command_line(
        main, "x", "predictor", copied.path, "--data", folder, "--out", tmp_path / "run"
    )
    assert code == 2 and "image" in said
    assert sorted(p.name for p in copied.path.iterdir()) == before
