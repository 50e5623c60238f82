from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from calibration import study
from calibration.network import quantisable_layers
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.record import read_record

Run = Callable[..., tuple[int, str]]


def both(blocks: Path) -> list[str]:
    return ["--data", f"{blocks}:train", "--val", f"{blocks}:val"]


def content(bundle: Bundle) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.path.iterdir()}


def test_int8_writes_the_file_and_what_it_cost(
    calibrate: Run, bundle: Bundle, blocks: Path, tmp_path: Path
) -> None:
    words = ["--frames", 16, "--calibrator", "minmax", "--no-cpu", "--json", tmp_path / "r.json"]
    code, out = calibrate("int8", bundle.path, *both(blocks), *words)
    assert code == 0, out
    assert "model.int8.onnx" in out and "next: fieldsight-run build" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["accepted"] and report["judged_by"] == "labels" and report["reason"]
    assert report["layers_in_float"] == [] and report["layers_ahead_of_adapter"]
    assert report["latency_ratio"] is None
    for moment in ("before", "after"):
        assert 0 <= report[moment]["segmentation"]["miou"] <= 1
        assert 0 <= report[moment]["detection"]["map_50"] <= 1
    opened = open_bundle(bundle.path)
    assert opened.has("model.int8.onnx") and not opened.has("model.int8-cpu.onnx")
    assert read_record(opened)["int8"]["reason"] == report["reason"]


def test_without_labels_agreement_decides(
    calibrate: Run, bundle: Bundle, blocks: Path, tmp_path: Path
) -> None:
    words = ["--frames", 16, "--calibrator", "minmax", "--json", tmp_path / "r.json"]
    code, out = calibrate("int8", bundle.path, "--data", blocks.parent / "images", *words)
    assert code == 0, out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["judged_by"] == "agreement" and report["budget"] == 5.0
    assert report["before"] == {"agreement": {"masks": 1.0, "boxes": 1.0}}
    assert report["confidence"] == {}
    assert report["latency_ratio"] == report["cpu"]["latency_ratio"] > 0


def test_a_refused_file_ends_with_exit_code_3_and_the_reason(
    calibrate: Run, bundle: Bundle, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.int8.LEAST_MACS", 2.0)
    words = ["--frames", 16, "--calibrator", "minmax", "--no-cpu"]
    code, out = calibrate("int8", bundle.path, *both(blocks), *words)
    assert code == 3
    assert "no INT8 file for TensorRT" in out and "gains nothing" in out
    opened = open_bundle(bundle.path)
    assert not opened.has("model.int8.onnx")
    assert read_record(opened)["int8"]["accepted"] is False


def test_bad_input_leaves_the_bundle_as_it_is(
    calibrate: Run, bundle: Bundle, blocks: Path, tmp_path: Path
) -> None:
    before = content(bundle)
    dark = tmp_path / "dark"
    dark.mkdir()
    for index, path in enumerate(sorted((blocks.parent / "images").iterdir())):
        cv2.imwrite(str(dark / f"{index}.png"), cv2.imread(str(path)) // 50)
    data = ["--data", f"{blocks}:train"]
    for code, words, says in (
        (2, ["--data", tmp_path / "nothing"], "does not exist"),
        (3, ["--data", dark, "--frames", 16], "standard deviations from the domain"),
        (2, [*data, "--frames", 5], "expected 16 to 512"),
        (2, [*data, "--frames", 16, "--calibrator", "magic"], "calibrator 'magic' is unknown"),
        (2, [*data, "--val", f"{blocks}:test"], "no split 'test'"),
        (2, [*data, "--val", dark], "dataset.yaml"),
    ):
        found, out = calibrate("int8", bundle.path, *words)
        assert (found, says in out) == (code, True), out
        assert content(bundle) == before


def test_sensitivity_ranks_layers_and_changes_nothing(
    calibrate: Run, bundle: Bundle, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All 110 take a while.
    monkeypatch.setattr(study, "quantisable_layers", lambda model: quantisable_layers(model)[-4:])
    before, out_dir = content(bundle), tmp_path / "out"
    words = ["--calibrator", "minmax", "--frames", 16, "--out", out_dir]
    code, out = calibrate("sensitivity", bundle.path, *both(blocks), *words)
    assert code == 0, out
    assert "next: fieldsight-calibrate int8" in out
    rows = json.loads((out_dir / "sensitivity.json").read_text())["layers"]
    assert len(rows) == 4 and all(row["name"] in out for row in rows)
    drops = [max(row["drop"], 0) for row in rows]
    assert drops == sorted(drops, reverse=True)
    picture = cv2.imread(str(out_dir / "sensitivity.png"))
    assert picture is not None and min(picture.shape[:2]) > 100
    assert content(bundle) == before
