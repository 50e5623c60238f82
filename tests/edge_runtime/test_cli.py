from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_runtime.bundle import Bundle, create_bundle, update_bundle
from edge_runtime.errors import RefusedError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception
from edge_runtime.sources import SourceLost

COLORS = {"a": (250, 0, 0), "b": (0, 250, 0)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, color in COLORS.items():
        cv2.imwrite(str(folder / f"{name}.png"), np.full((96, 128, 3), color[::-1], np.uint8))
    return folder


def test_info_says_what_became_of_each_precision(run: Any, tiny_bundle: Bundle) -> None:
    sections = {
        "int8": {"accepted": False, "reason": "costs 7.50 points, 1 allowed"},
        "fp16": {"accepted": True, "reason": "loses 0.01 points"},
    }
    update_bundle(tiny_bundle, {"calibration.json": json.dumps(sections).encode()})
    code, out, _ = run("info", tiny_bundle.path)
    assert code == 0
    assert "refused: costs 7.50 points" in out and "kept: loses 0.01" in out
    update_bundle(tiny_bundle, {"calibration.json": b"{"})
    code, _, err = run("info", tiny_bundle.path)
    assert code == 2 and "calibration.json: not valid JSON" in err


def test_info_verify_and_benchmark_write_json(
    run: Any, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "out" / "result.json"
    code, out, _ = run("info", tiny_bundle.path, "--json", file)
    assert code == 0 and "red, green, blue" in out and "next: fieldsight-run verify" in out
    assert json.loads(file.read_text())["metrics"] == {"segmentation": {"miou": 0.5}}

    code, out, _ = run("verify", tiny_bundle.path, "--json", file)
    assert code == 0
    report = json.loads(file.read_text())
    assert report["files"] == 2 and report["self_test"]["mask_agreement"] == 1

    code, out, _ = run("benchmark", tiny_bundle.path, "--frames", 3, "--threads", 1, "--json", file)
    assert code == 0
    report = json.loads(file.read_text())
    assert report["frames"] == 3 and report["engine"] == "onnxruntime-cpu-fp32"
    assert report["engine_ms"].keys() == report["total_ms"].keys() == {"p50", "p90", "p99"}
    assert report["total_ms"]["p50"] >= report["engine_ms"]["p50"] and report["fps"] > 0


def test_predict_writes_what_perception_found(
    run: Any, tiny_bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("supervision")
    out_dir, file = tmp_path / "out", tmp_path / "out.json"
    code, out, err = run("predict", tiny_bundle.path, photos, "--out", out_dir, "--json", file)
    assert code == 0, err
    lines = [json.loads(line) for line in (out_dir / "predictions.jsonl").read_text().splitlines()]
    assert [line["frame_id"] for line in lines] == ["a", "b"]
    assert lines[0]["detections"][1] == {
        "class": "ball",
        "label": 1,
        "score": pytest.approx(0.7),
        "box": pytest.approx([18, 16, 50, 48]),
    }
    for index, name in enumerate("ab"):
        mask = cv2.imread(str(out_dir / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (96, 128) and (mask == index).all()
    overlay = cv2.imread(str(out_dir / "overlays" / "a.jpg"))[..., ::-1]
    assert overlay.shape == (96, 128, 3)
    assert np.abs(overlay[90, 120].astype(int) - [252, 0, 0]).max() < 12  # red mask on red
    coco = json.loads((out_dir / "detections.coco.json").read_text())
    assert coco[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert coco[0]["bbox"] == [16, 16, 32, 32] and coco[0]["image_id"] == 1
    report = json.loads(file.read_text())
    assert report["frames"] == 2 and report["skipped"] == 0
    assert "predictions.jsonl" in out and "next: fieldsight-run benchmark" in out


def test_predict_on_a_dataset_keeps_its_ids(
    run: Any, tiny_bundle: Bundle, tiny: Any, tmp_path: Path
) -> None:
    out_dir = tmp_path / "out"
    code, _, err = run(
        "predict", tiny_bundle.path, f"{tiny.yaml}:all", "--out", out_dir, "--no-overlays"
    )
    assert code == 0, err
    coco = json.loads((out_dir / "detections.coco.json").read_text())
    assert {entry["image_id"] for entry in coco} == {4, 5}
    assert {entry["category_id"] for entry in coco} == {3, 7}
    assert not (out_dir / "overlays").exists()


def test_what_was_written_before_a_camera_vanished_stays(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    from edge_runtime.prediction import PredictionWriter, predict

    def frames() -> Any:
        image = np.zeros((48, 64, 3), np.uint8)
        yield Frame(image, 0, "camera_0")
        yield Frame(image, 1, "camera_0")
        raise SourceLost("camera:0 stopped")

    perception = Perception(tiny_bundle, threads=1)
    writer = PredictionWriter(tmp_path / "out", perception, overlays=False)
    with pytest.raises(SourceLost):
        predict(perception, frames(), writer)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2
    assert len(json.loads((tmp_path / "out" / "detections.coco.json").read_text())) == 4
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "absent.bundle"),
        ("predict", "BUNDLE", "absent", "--out", "OUT"),
        ("predict", "BUNDLE", "camera:x", "--out", "OUT"),
        ("benchmark", "BUNDLE", "--raw", "big"),
        ("benchmark", "BUNDLE", "--backend", "tensorrt"),
        ("benchmark", "BUNDLE", "--frames", "0"),
        ("predict", "BUNDLE", "x", "--out", "OUT", "--score-threshold", "2"),
        ("juggle",),
    ],
)
def test_wrong_input_ends_with_2_and_no_traceback(
    run: Any, tiny_bundle: Bundle, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    places = {"BUNDLE": tiny_bundle.path, "OUT": tmp_path / "out"}
    code, _, err = run(*(places.get(word, word) for word in arguments))
    assert code == 2
    assert "Error" in err and "Traceback" not in err


def test_a_failed_self_test_ends_with_3(
    run: Any,
    tmp_path: Path,
    network: bytes,
    fields: dict[str, Any],
    canary: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files: dict[str, bytes | Path] = {"model.onnx": network, "canary.npz": canary}
    bundle = create_bundle(tmp_path / "x.bundle", fields, files)

    def refuse(*_: object) -> None:
        raise RefusedError("self-test: masks differ")

    monkeypatch.setattr("edge_runtime.perception.run_canary", refuse)
    code, _, err = run("verify", bundle.path)
    assert code == 3 and "masks differ" in err and "Traceback" not in err


def test_verify_says_which_file_was_altered(run: Any, tiny_bundle: Bundle) -> None:
    shutil.copy(tiny_bundle.file("canary.npz"), tiny_bundle.path / "model.int8.onnx")
    code, _, err = run("verify", tiny_bundle.path)
    assert code == 2 and "model.int8.onnx" in err


def test_doctor_ends_as_its_findings_say(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_runtime.doctor import Machine

    file = tmp_path / "doctor.json"
    monkeypatch.setattr(Machine, "space", lambda self, name: (64 << 20, 64 << 20))
    assert run("doctor")[0] == 0
    code, out, err = run("doctor", "--strict")
    assert code == 3 and "shared memory" in err and "--ipc host" in out
    monkeypatch.undo()

    have = Machine.version
    gone = {"onnxruntime", "onnxruntime-gpu"}
    monkeypatch.setattr(
        Machine, "version", lambda self, name: None if name in gone else have(self, name)
    )
    code, _, err = run("doctor", "--json", file)
    assert code == 2 and "missing packages: onnxruntime" in err
    assert json.loads(file.read_text())["missing_packages"] == ["onnxruntime"]
    monkeypatch.undo()

    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "test_gpu.py").write_text(
        "import pytest\n@pytest.mark.gpu\ndef test_sum():\n    assert 1 + 1 == 3\n"
    )
    monkeypatch.setenv("FIELDSIGHT_TESTS", str(tmp_path / "tests"))
    code, out, err = run("doctor", "--gpu-tests", "--json", file)
    assert code == 3 and "1 GPU tests failed" in err and "test_sum" in out
    assert len(json.loads(file.read_text())["gpu_tests"]["failed"]) == 1


def test_doctor_and_help(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    code, out, _ = run("doctor", "--json", file)
    assert code == 0 and "onnxruntime" in out
    findings = {finding["name"]: finding for finding in json.loads(file.read_text())["findings"]}
    assert findings["numpy"] == {
        "heading": "packages",
        "name": "numpy",
        "verdict": "ok",
        "found": np.__version__,
        "remedy": "",
    }
    for command in ("info", "verify", "predict", "benchmark", "doctor"):
        code, out, _ = run(command, "--help")
        assert code == 0 and "Example" in out
