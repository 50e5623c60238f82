"""Runs the project's tests that need a GPU, and says what became of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.errors import InputError

LIMIT_S = 3600


@dataclass(slots=True)
class Outcome:
    """Names of tests by what became of them, with the reason where there is one."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def gpu_tests_folder() -> Path:
    """Where the tests are: `$FIELDSIGHT_TESTS`, as in the container, else beside the sources.

    Raises:
        InputError: There are none.
    """
    given = os.environ.get("FIELDSIGHT_TESTS")
    folder = (Path(given) if given else Path(__file__).resolve().parents[2] / "tests") / "gpu"
    if not folder.is_dir():
        raise InputError(
            f"{folder} is absent, so there are no GPU tests to run; run this in the container or "
            "in a checkout, or set FIELDSIGHT_TESTS to the folder of the tests"
        )
    return folder


def run_gpu_tests(folder: Path | None = None) -> Outcome:
    """Run `pytest -m gpu` on the tests that need a GPU.

    Args:
        folder: Their folder; see `gpu_tests_folder`.

    Raises:
        InputError: pytest is absent, or found nothing to run.
    """
    folder = folder or gpu_tests_folder()
    with tempfile.TemporaryDirectory(prefix="fieldsight-gpu-") as work:
        report = Path(work) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", str(folder), "-q"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(folder.parents[1])]
        command += [f"--junitxml={report}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise InputError(f"the tests in {folder} took more than {LIMIT_S} s") from None
        if not report.is_file():
            text = (done.stdout + done.stderr).strip()[-500:]
            raise InputError(f"pytest could not run {folder} (pip install pytest?): {text}")
        outcome = read_report(report)
    if not (outcome.passed or outcome.failed or outcome.skipped):
        raise InputError(f"pytest found no test marked gpu in {folder}")
    return outcome


def read_report(path: Path) -> Outcome:
    """Read a JUnit file of pytest's.

    Args:
        path: What `--junitxml` wrote.
    """
    outcome = Outcome()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        broken = [child for kind in ("failure", "error") for child in case.findall(kind)]
        skipped = case.find("skipped")
        if broken:
            outcome.failed[name] = _reason(broken[0])
        elif skipped is not None:
            outcome.skipped[name] = _reason(skipped)
        else:
            outcome.passed.append(name)
    return outcome


def _reason(element: ElementTree.Element) -> str:
    """The message, and for what is only in the traceback its lines that pytest marks with E."""
    lines = [line[1:] for line in (element.text or "").splitlines() if line.startswith("E ")]
    message = element.get("message") or ""
    if message in ("", "collection failure") and lines:
        message = " ".join(lines)
    return " ".join(message.split())[:300]
