from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes.machine import Machine
from rich.console import Console

from edge_runtime import terminal
from edge_runtime.bundle import Bundle


@pytest.fixture
def machine(machine: Machine) -> Machine:
    return machine.install("10.13")


def test_build_writes_a_plan_that_the_other_commands_use(
    run: Any, machine: Machine, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "build.json"
    options = ("--workspace", 96, "--optimization-level", 4, "--no-cuda-graph", "--json", file)
    code, out, err = run("build", tiny_bundle.path, *options)
    assert code == 0, err
    report = json.loads(file.read_text())
    assert report["built"] and Path(report["plan"]).stat().st_size == report["bytes"]
    assert report["engine"] == "tensorrt-10.13-sm87-fp32" and not report["cuda_graph"]
    assert report["options"]["workspace_mib"] == 96
    assert report["self_test"]["mask_agreement"] == 1
    assert f"wrote {report['plan']}" in out
    assert f"next: fieldsight-run benchmark {tiny_bundle.path} --backend tensorrt" in out

    machine.trt.failures["build"] = "this must not be built again"
    code, out, err = run("verify", tiny_bundle.path, "--backend", "tensorrt", "--json", file)
    assert code == 0, err
    assert json.loads(file.read_text())["engine"] == "tensorrt-10.13-sm87-fp32"


def test_build_again_takes_the_cache_unless_forced(
    run: Any, machine: Machine, tiny_bundle: Bundle
) -> None:
    assert "built now" in run("build", tiny_bundle.path)[1]
    code, out, _ = run("build", tiny_bundle.path)
    assert code == 0 and "was in the cache; --force rebuilds" in out and "wrote" not in out
    assert "built now" in run("build", tiny_bundle.path, "--force")[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--precision", "fp16"), "no model.fp16.onnx"),
        (("--precision", "fp7"), "'fp7' is unknown"),
        (("--optimization-level", 7), "optimization_level"),
        (("--workspace", 0), "workspace_mib"),
        (("--dla", 0), "DLA computes in fp16 and int8 only"),
        (("--check", "--capability", "orin"), "expected MAJOR.MINOR, such as 8.6"),
    ],
)
def test_what_cannot_be_built_ends_with_2_and_says_why(
    run: Any, machine: Machine, tiny_bundle: Bundle, options: tuple[object, ...], says: str
) -> None:
    code, _, err = run("build", tiny_bundle.path, *options)
    assert code == 2 and says in err


def test_without_tensorrt_build_says_what_is_missing(
    run: Any, machine: Machine, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, _, err = run("build", tiny_bundle.path)
    assert code == 2 and "tensorrt cannot be imported" in err and "JetPack" in err


def test_an_engine_that_fails_its_self_test_ends_with_3(
    run: Any, machine: Machine, tiny_bundle: Bundle
) -> None:
    machine.trt.spoil["mask"] = lambda values: (values + 1) % 3
    code, _, err = run("build", tiny_bundle.path)
    assert code == 3 and "self-test" in err


def test_check_compiles_without_a_gpu(run: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
    file = tmp_path / "check.json"
    code, out, err = run("build", tiny_bundle.path, "--check", "--json", file)
    assert code == 0, err
    (report,) = json.loads(file.read_text())["reports"]
    assert report["file"] == "model.onnx" and report["ok"] and report["layers"] > 5
    assert "model.onnx" in out and f"next: fieldsight-run build {tiny_bundle.path}" in out


def test_check_ends_with_3_and_names_what_is_refused(
    run: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
    from edge_runtime.bundle import create_bundle

    bundle = create_bundle(tmp_path / "bad.bundle", fields, {"model.onnx": b"\xffnothing"})
    code, out, err = run("build", bundle.path, "--check")
    assert code == 3 and "TensorRT does not take every network" in err and "model.onnx: " in err
    assert "NO" in out


def test_the_progress_of_nested_phases_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_runtime.cli import build

    module: ModuleType = sys.modules[build.__module__] if callable(build) else build
    console = Console(force_terminal=True, width=120, record=True, stderr=True)
    monkeypatch.setattr(terminal, "errors", console)
    with module._progress() as progress:
        progress("Building Engine", 0, 2)
        progress("Timing", 1, 4)
        progress("Timing", 4, 4)
        progress("Building Engine", 1, 2)
        console.print("between")
        progress("Building Engine", 2, 2)
    assert "Building Engine" in console.export_text()
