"""Pretraining a small encoder: what it writes, how it goes on, and what ends it."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pretrain_cases import tiny, write_images
from safetensors.torch import load_file
from torch import Tensor

from distill import training
from distill.data.images import open_images
from distill.evaluation.opening import open_encoder
from distill.objectives.simclr import SimCLR
from distill.pretraining import pretrain, read_options, read_settings
from distill.settings import PretrainSettings
from edge_runtime.errors import InputError, RefusedError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def run(images: Path, out: Path, settings: PretrainSettings, **more: Any) -> dict[str, Any]:
    return pretrain(open_images([str(images)]), out, settings, accelerator="cpu", **more)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to its end: 36 images, four steps an epoch."""
    out = tmp_path_factory.mktemp("whole")
    run(images, out, tiny("simclr", "keep_encoders=true"))
    return out


def test_a_run_writes_an_encoder_that_opens_and_has_learnt(whole: Path) -> None:
    opened = open_encoder(str(whole))
    untrained = open_encoder(f"{whole}@random")
    image = torch.rand(2, 3, 32, 32)
    assert opened.method == "simclr" and opened.size == (32, 32)
    assert not torch.allclose(opened.encoder.pooled(image), untrained.encoder.pooled(image))
    kept = sorted((whole / "encoders").iterdir())
    assert [k.name for k in kept] == ["encoder-0001.safetensors", "encoder-0002.safetensors"]
    last, final = load_file(kept[1]), load_file(whole / "encoder.safetensors")
    assert all(torch.equal(last[k], final[k]) for k in final)


def test_metrics_and_summary_hold_losses_and_probes(whole: Path) -> None:
    found = rows(whole)
    assert [r["step"] for r in found] == [str(i) for i in range(1, 9)]
    assert all(math.isfinite(float(r["train/loss"])) for r in found)
    assert float(found[3]["probe/rankme"]) >= 1 and not found[2]["probe/rankme"]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["images"] == 36 and summary["held_back"] == 4 and summary["skipped"] == 0


class Stopped(Exception):
    pass


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record = training.Trainer._record

    def stopping(self: Any, losses: Any, at: int, *rest: Any) -> None:
        if at == step:
            raise Stopped
        record(self, losses, at, *rest)

    monkeypatch.setattr(training.Trainer, "_record", stopping)


def test_a_killed_run_goes_on_as_if_unbroken(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("simclr", "checkpoint_every=3")
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(Stopped):
            run(images, tmp_path, settings)
    run(images, tmp_path, settings, resume=True)
    unbroken, resumed = (load_file(d / "encoder.safetensors") for d in (whole, tmp_path))
    assert all(torch.equal(unbroken[k], resumed[k]) for k in unbroken)
    assert [r["train/loss"] for r in rows(tmp_path)] == [r["train/loss"] for r in rows(whole)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["method=vicreg", "options={expander: 16}"], "settings.method was 'simclr', is 'vicreg'"),
        (
            ["encoder=resnet10t", "encoder_args={}"],
            "settings.encoder was 'resnet18', is 'resnet10t'",
        ),
        (["batch_size=4"], "settings.batch_size was 8, is 4"),
    ],
)
def test_another_run_does_not_resume(
    images: Path, whole: Path, tmp_path: Path, change: list[str], said: str
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(InputError, match=said):
        run(images, out, tiny("simclr", *change), resume=True)


def test_another_number_of_processes_or_other_images_do_not_resume(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    identity = json.loads(state["identity"]) | {"processes": 2}
    torch.save(state | {"identity": json.dumps(identity)}, out / "checkpoint.pt")
    with pytest.raises(InputError, match="processes was 2, is 1"):
        run(images, out, tiny(), resume=True)
    shutil.copy(whole / "checkpoint.pt", out)
    with pytest.raises(InputError, match="data was"):
        run(write_images(tmp_path / "more", 41), out, tiny(), resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no checkpoint"])
def test_a_spoilt_checkpoint_is_refused(images: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        run(images, tmp_path, tiny(), resume=True)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the loss of some steps what a division by zero would: NaN, through the network."""
    forward, calls = SimCLR.forward, iter(range(100))

    def spoilt(self: SimCLR, batch: list[Tensor]) -> dict[str, Tensor]:
        if next(calls) in steps:
            batch = [view * math.inf for view in batch]
        return forward(self, batch)

    monkeypatch.setattr(SimCLR, "forward", spoilt)


def test_steps_without_a_finite_loss_are_skipped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 3, 6})
    summary = run(images, tmp_path, tiny())
    assert summary["skipped"] == 3
    weights = load_file(tmp_path / "encoder.safetensors")
    assert all(torch.isfinite(v).all() for v in weights.values()), "batch statistics were spoilt"


def test_too_many_bad_steps_end_the_run_and_keep_the_last_good_state(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(3, 100)))
    with pytest.raises(InputError, match=r"the loss became nan at step 5, and in the 2 before it"):
        run(images, tmp_path, tiny("simclr", "bad_steps=2", "checkpoint_every=1"))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(v).all() for v in state["module"].values())


def test_a_collapsed_run_is_stopped_with_advice(images: Path, tmp_path: Path) -> None:
    # Without variance and covariance nothing keeps VICReg from mapping all images to one point,
    # and weights that decay fast take it there on any machine.
    dead = ["options={expander: 16, variance: 0, covariance: 0}", "epochs=60", "warmup=0"]
    dead += ["lr=0.1", "weight_decay=8"]
    with pytest.raises(RefusedError, match="this run is dead and was stopped"):
        run(images, tmp_path, tiny("vicreg", *dead, "probe_every=5"))
    assert (tmp_path / "checkpoint.pt").is_file()


def test_weight_decay_follows_its_cosine_and_spares_vectors(images: Path, tmp_path: Path) -> None:
    rise = ["weight_decay=0.1", "final_weight_decay=0.5", "epochs=2", "checkpoint_every=1"]
    run(images, tmp_path, tiny("simclr", *rise))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    found = sorted(g["weight_decay"] for g in state["optimizer"]["param_groups"])
    last = (state["step"] - 1) / state["step"]  # progress of the last step
    assert found == [0, pytest.approx(0.5 - 0.4 * (1 + math.cos(math.pi * last)) / 2)]
    with pytest.raises(InputError, match="final_weight_decay needs a weight_decay above 0"):
        tiny("simclr", "weight_decay=0", "final_weight_decay=0.5")


def test_too_few_images_for_a_batch(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"36 images to train on .* fewer than a batch of 64"):
        run(images, tmp_path, tiny("simclr", "batch_size=64"))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((20, 20, 3), np.uint8), "of one colour, the first is RGB"),
        (np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8), "are the same"),
    ],
    ids=["black", "identical"],
)
def test_images_that_are_all_alike(tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
    with pytest.raises(InputError, match=said):
        run(folder, tmp_path / "out", tiny())


def test_the_last_phase_may_be_at_a_higher_resolution(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = SimCLR.forward

    def watched(self: SimCLR, batch: list[Tensor]) -> dict[str, Tensor]:
        seen.append(batch[0].shape[-1])
        return forward(self, batch)

    monkeypatch.setattr(SimCLR, "forward", watched)
    run(images, tmp_path, tiny("simclr", "final_size=[64, 64]", "final_epochs=1"))
    assert seen == [32] * 4 + [64] * 4


def test_misspelt_methods_options_and_settings_name_the_right_ones() -> None:
    with pytest.raises(InputError, match="did you mean simclr"):
        read_settings("simcrl", None, [])
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        read_options(SimCLR, {"temprature": 0.1})
    with pytest.raises(InputError, match="did you mean batch_size"):
        read_settings("simclr", None, ["batchsize=3"])
    with pytest.raises(InputError, match="give --method"):
        read_settings(None, None, [])


def test_decoupled_leaves_the_positive_out_of_the_denominator(images: Path, tmp_path: Path) -> None:
    losses = []
    for decoupled in (False, True):
        out = tmp_path / str(decoupled)
        option = f"options={{hidden: 16, projection: 8, decoupled: {str(decoupled).lower()}}}"
        run(images, out, tiny("simclr", option, "epochs=1"))
        losses.append(float(rows(out)[0]["train/loss"]))
    assert losses[1] < losses[0]
