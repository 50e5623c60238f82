"""Checkpoints of different quality: which figures follow the probe, and which are left out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.cli import main
from distill.evaluation.tracking import FIGURES, checkpoints_of, correlations
from edge_runtime.errors import InputError


@pytest.fixture
def run(tmp_path, encoder):
    """A run that kept six epochs, from blind to seeing: noise on the weights falls."""
    folder = tmp_path / "run"
    (folder / "encoders").mkdir(parents=True)
    weights = encoder.model.state_dict()
    torch.manual_seed(0)
    for epoch, noise in enumerate((400.0, 100.0, 40.0, 15.0, 5.0, 0.0), 1):
        grown = {
            k: (
                v + noise * torch.randn_like(v) * v.std() if k == "conv1.weight" else v
            ).contiguous()
            for k, v in weights.items()
        }
        # Blind to colour: the same kernel for every channel, as far as there is noise.
        grey = grown["conv1.weight"].mean(1, keepdim=True).expand_as(grown["conv1.weight"])
        share = noise / (noise + 5)
        grown["conv1.weight"] = share * grey + (1 - share) * grown["conv1.weight"]
        save_file(grown, folder / "encoders" / f"encoder-{epoch:04d}.safetensors")
    shutil.copy(folder / "encoders" / "encoder-0006.safetensors", folder / "encoder.safetensors")
    settings = {
        "encoder": encoder.spec.name,
        "encoder_args": encoder.spec.arguments,
        "size": [32, 32],
        "method": "simclr",
    }
    (folder / "config.json").write_text(json.dumps({"command": "pretrain", "settings": settings}))
    return folder


def test_kept_epochs_in_order_and_the_end(run):
    found = checkpoints_of(run)
    assert found[0].endswith("run@encoders/encoder-0001.safetensors") and len(found) == 6
    weights = load_file(run / "encoder.safetensors")
    weights["conv1.weight"] *= 2
    save_file(weights, run / "encoder.safetensors")
    assert checkpoints_of(run) == [*found, str(run)]  # the end is another than the last kept


def figures(error: float, **quality: float | None) -> dict:
    return {"labels": {"linear_error": error, "overlap": error / 2, "inter_astd": 0.3},
            "quality": quality}  # fmt: skip


def test_correlation_is_with_the_error_and_what_is_missing_is_left_out():
    judged = [
        figures(e, rankme=10 - e, lidar=None if e == 0.2 else 1.0, spread=float("nan"))
        for e in (0.5, 0.2, 0.4, 0.1, 0.3)
    ]
    found = correlations(judged)
    assert found["overlap"]["spearman"] == pytest.approx(1)
    assert found["RankMe"]["spearman"] == pytest.approx(-1)
    assert set(found) == {"overlap", "RankMe"}  # constant, missing, not finite: left out
    with pytest.raises(InputError, match="3 checkpoints, of 3 different errors"):
        correlations(judged[:3])
    with pytest.raises(InputError, match="5 checkpoints, of 1 different errors"):
        correlations([figures(0.2, rankme=float(i)) for i in range(5)])


def test_epochs_of_a_run_through_the_command_line(run, coloured, tmp_path, command_line):
    json_file = tmp_path / "figures.json"
    words = ["evaluate", run, "--data", coloured, "--views", "2", "--checkpoints"]
    code, out, err = command_line(main, "fieldsight-distill", *words, "--json", json_file)
    assert code == 0, err
    found = json.loads(json_file.read_text())["checkpoints"]
    errors = [f["labels"]["linear_error"] for f in found["judged"]]
    assert len(errors) == 6 and errors[0] > errors[-1]
    assert set(found["correlation"]) <= set(FIGURES)
    assert found["correlation"]["overlap"]["spearman"] > 0.5
    assert "Rank correlation" in out and "inter-class aSTD" in out


def test_runs_without_epochs_and_encoders_without_run_are_named(run, coloured, command_line):
    for file in (run / "encoders").iterdir():
        file.unlink()
    words = ["--data", coloured, "--views", "2", "--checkpoints"]
    code, _, err = command_line(main, "fieldsight-distill", "evaluate", run, *words)
    assert code == 2 and "keep_encoders=true" in err
    code, _, err = command_line(main, "fieldsight-distill", "evaluate", f"{run}@random", *words)
    assert code == 2 and "no run of pretrain" in err
