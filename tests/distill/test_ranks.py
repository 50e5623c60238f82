"""Two processes over gloo train as one does with the same global batch, by DDP and by FSDP."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from distill.data.images import open_images
from distill.pretraining import pretrain, read_settings

HERE = Path(__file__).parent
# A trunk with batch norm, which must be synchronised, and one without.
RESNET = ["encoder=resnet18", "encoder_args={layers: [1, 1, 1, 1], channels: [8, 16, 16, 24]}"]
VIT = ["encoder=vit_tiny_patch16_224", "encoder_args={img_size: 32, patch_size: 8, depth: 2}"]
COMMON = ["size=[32, 32]", "epochs=5", "workers=0", "log_every=1", "probe_every=5", "timeout=1"]
# SGD, as Adam's first steps turn rounding of gradients near zero into steps of full length.
COMMON += ["sync_batchnorm=true", "lr_scaling=none", "lr=0.001", "optimizer=sgd", "accumulate=1"]
METHODS = {
    "simclr": [*RESNET, "options={hidden: 32, projection: 16, temperature: 0.5}"],
    "vicreg": [*RESNET, "options={expander: 32}"],
    "mocov3": [*VIT, "options={hidden: 32, projection: 16}"],
    "dino": [*VIT, "options={hidden: 32, bottleneck: 16, prototypes: 64, local_views: 2}"],
}
# Also of the whole batch: correlations, queues, balanced assignments, the nearest neighbour.
_PROTOTYPES = "hidden: 32, bottleneck: 16, prototypes: 64, local_views: 2"
OTHERS = {
    "barlow": [*RESNET, "options={projection: 32}"],
    "byol": [*RESNET, "options={hidden: 32, projection: 16}"],
    "densecl": [*VIT, "options={hidden: 32, projection: 16, queue: 64}"],
    "dinov2": [*VIT, f"options={{{_PROTOTYPES}}}"],
    "simsiam": [*RESNET, "options={projection: 32, bottleneck: 16}"],
}
GLOBAL_BATCH = 16
STEPS = 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images: four batches, and seven held back.

    Noise on smooth colours, as equal pixels make a maximum's place depend on rounding.
    """
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(72):
        smooth = cv2.resize(
            rng.uniform(20, 235, (6, 6, 3)), (48, 48), interpolation=cv2.INTER_CUBIC
        )
        image = (smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:02d}.png"), image)
    return folder


def settings(method: str, *more: str) -> list[str]:
    return [*COMMON, *{**METHODS, **OTHERS}[method], *more]


def start(runs: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Exit codes and words of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    command = [sys.executable, str(HERE / "ranks_run.py"), json.dumps(runs)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(i), "LOCAL_RANK": str(i), "GROUP_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    said = [p.communicate(timeout=300)[0] for p in processes]
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]


def two_processes(runs: list[dict[str, Any]]) -> None:
    ended = start(runs)
    assert [code for code, _ in ended] == [0, 0], "\n".join(said for _, said in ended)


def curve(out: Path) -> np.ndarray:
    with (out / "metrics.csv").open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert len(losses) == STEPS
    return np.array(losses)


def case(images: Path, out: Path, method: str, *more: str) -> dict[str, Any]:
    half = f"batch_size={GLOBAL_BATCH // 2}"
    asked = settings(method, half, *more)
    return {"data": str(images), "out": str(out), "method": method, "settings": asked}


def one_process(images: Path, out: Path, method: str) -> np.ndarray:
    one = read_settings(method, None, settings(method, f"batch_size={GLOBAL_BATCH}"))
    pretrain(open_images([str(images)]), out, one, accelerator="cpu")
    return curve(out)


def compare(images: Path, folder: Path, cases: list[tuple[str, str]]) -> None:
    outs = {(m, s): folder / f"{m}-{s}" for m, s in cases}
    two_processes([case(images, o, m, f"strategy={s}") for (m, s), o in outs.items()])
    for method in dict.fromkeys(m for m, _ in cases):
        expected = one_process(images, folder / method, method)
        for strategy in [s for m, s in cases if m == method]:
            found = curve(outs[method, strategy])
            np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=f"{method} {strategy}")


def test_two_processes_train_as_one(images: Path, tmp_path: Path) -> None:
    compare(images, tmp_path, [("simclr", "ddp"), ("mocov3", "fsdp")])


@pytest.mark.slow
def test_two_processes_train_as_one_by_every_method_and_strategy(
    images: Path, tmp_path: Path
) -> None:
    compare(images, tmp_path, [(m, s) for m in METHODS for s in ("ddp", "fsdp")])


@pytest.mark.slow
def test_two_processes_train_as_one_by_the_other_methods(images: Path, tmp_path: Path) -> None:
    compare(images, tmp_path, [(m, "ddp") for m in OTHERS])


@pytest.mark.slow
def test_the_comparison_would_see_statistics_of_half_the_batch(
    images: Path, tmp_path: Path
) -> None:
    two_processes([case(images, tmp_path / "halves", "simclr", "sync_batchnorm=false")])
    expected = one_process(images, tmp_path / "one", "simclr")
    assert np.abs(curve(tmp_path / "halves") / expected - 1).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_that_dies_ends_the_other_and_the_run_goes_on(
    images: Path, tmp_path: Path, strategy: str
) -> None:
    more = [f"strategy={strategy}", "checkpoint_every=3"]
    broken = case(images, tmp_path / "run", "mocov3", *more)
    (left, said), (killed, _) = start([broken | {"die_at": 7}])
    assert killed == -signal.SIGKILL and left == 1, said
    assert "another process of this run ended" in said and "go on with --resume" in said
    two_processes([broken | {"resume": True}])
    expected = one_process(images, tmp_path / "one", "mocov3")
    np.testing.assert_allclose(curve(tmp_path / "run"), expected, rtol=1e-3)
