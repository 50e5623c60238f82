"""What the doctor runs: commands with limits, and the tests that need a GPU."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.doctor.gpu_tests import gpu_tests_folder, read_report, run_gpu_tests
from edge_runtime.doctor.machine import LIMIT_BYTES, NoAnswer, run_command
from edge_runtime.errors import InputError


def ends(command: bytes) -> bool:
    """Whether no process with this command line is left, soon."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        lines = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                lines.append(file.read_bytes())
        if command not in lines:
            return True
        time.sleep(0.05)
    return False


def test_commands_are_limited_in_time_and_output() -> None:
    assert run_command(["printf", "a\\033[31mb"]) == "a[31mb"
    assert run_command(["no-such-program-anywhere"]) is None
    assert run_command(["false"]) is None
    endless = run_command(["yes"])
    assert endless is not None and LIMIT_BYTES - 8 < len(endless) <= LIMIT_BYTES
    before = time.monotonic()
    with pytest.raises(NoAnswer, match="did not answer within 0.3 s"):
        run_command(["sh", "-c", "sleep 77 & sleep 77"], limit_s=0.3)
    assert time.monotonic() - before < 60, "it waited for the sleep"
    assert ends(b"sleep\x0077\x00"), "a child was left running"


def test_a_child_that_outlives_its_parent_is_ended_too() -> None:
    with pytest.raises(NoAnswer):
        run_command(["sh", "-c", "sleep 79 & exit 0"], limit_s=0.3)
    assert ends(b"sleep\x0079\x00")


def test_a_silent_command_that_closed_its_output_is_limited_too() -> None:
    with pytest.raises(NoAnswer):
        run_command(["sh", "-c", "exec >&-; sleep 78"], limit_s=0.3)


GPU_TESTS = """
import pytest
@pytest.mark.gpu
def test_one():
    pass
@pytest.mark.gpu
def test_two():
    pytest.skip("no GPU answers")
def test_not_of_the_gpu():
    raise SystemExit
"""


def suite(root: Path, text: str) -> Path:
    folder = root / "tests" / "gpu"
    folder.mkdir(parents=True)
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['gpu: x']\n")
    (folder / "test_gpu.py").write_text(text)
    return folder


def test_gpu_tests_are_run_and_told_apart(tmp_path: Path) -> None:
    outcome = run_gpu_tests(suite(tmp_path, GPU_TESTS))
    assert [name.rpartition("::")[2] for name in outcome.passed] == ["test_one"]
    assert list(outcome.skipped.values()) == ["no GPU answers"] and not outcome.failed
    broken = GPU_TESTS + "@pytest.mark.gpu\ndef test_three():\n    assert 1 == 2, 'off by one'\n"
    (tmp_path / "tests" / "gpu" / "test_gpu.py").write_text(broken)
    outcome = run_gpu_tests(tmp_path / "tests" / "gpu")
    assert "off by one" in next(iter(outcome.failed.values()))
    (tmp_path / "tests" / "gpu" / "test_gpu.py").write_text("import no_such_module\n")
    assert "no_such_module" in next(iter(run_gpu_tests(tmp_path / "tests" / "gpu").failed.values()))


def test_without_gpu_tests_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDSIGHT_TESTS", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="set FIELDSIGHT_TESTS"):
        gpu_tests_folder()
    with pytest.raises(InputError, match="no test marked gpu"):
        run_gpu_tests(suite(tmp_path, "def test_other():\n    pass\n"))


def test_a_report_of_pytest_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    case: Any = '<testcase classname="a" name="{}">{}</testcase>'
    cases = case.format("x", '<error message="boom  \n at setup"/>') + case.format("y", "")
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    outcome = read_report(report)
    assert outcome.failed == {"a::x": "boom at setup"} and outcome.passed == ["a::y"]
