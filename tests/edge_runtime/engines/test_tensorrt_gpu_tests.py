"""The tests for a real GPU, tested on a fake one: they run, pass, and find what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]


def run_gpu_tests(*options: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, str(TESTS / "gpu"), *options],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS), "FIELDSIGHT_BUNDLE": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return result.returncode, result.stdout + result.stderr


def test_without_a_gpu_they_are_skipped_with_the_reason() -> None:
    code, out = run_gpu_tests()
    if "passed" in out:
        pytest.skip("this machine has a GPU, so they ran")
    assert code == 0, out
    assert re.search(r"SKIPPED \[\d+\] .*needs an NVIDIA GPU with TensorRT: tensorrt cannot", out)


def test_on_a_gpu_that_works_they_pass() -> None:
    code, out = run_gpu_tests("-p", "fakes.plugin", FIELDSIGHT_SOAK_CALLS="400")
    assert code == 0, out
    assert "has no model.int8.onnx" in out, "what the bundle lacks is skipped with its reason"
    assert re.search(r"1\d passed", out) and re.search(r"tensorrt-[\d.]+-sm87-fp32: p50", out)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("statistics off by a tenth", "test_it_agrees_with_onnx_runtime"),
        ("scores off", "test_it_agrees_with_onnx_runtime"),
        ("drift", "test_a_soak_leaves_memory_flat"),
    ],
)
def test_on_a_gpu_that_does_not_they_fail(fault: str, test: str) -> None:
    options = ("-p", "fakes.plugin", "-k", test)
    code, out = run_gpu_tests(*options, FAKE_FAULT=fault, FIELDSIGHT_SOAK_CALLS="400")
    assert code == 1 and f"FAILED tests/gpu/test_gpu_engine.py::{test}" in out, out
