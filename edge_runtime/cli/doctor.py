"""`fieldsight-run doctor`: what this machine offers, what is wrong and what to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edge_runtime import terminal
from edge_runtime.cli.app import app
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.terminal import JsonFile

if TYPE_CHECKING:
    from edge_runtime.doctor import Finding
    from edge_runtime.doctor.gpu_tests import Outcome

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red", "absent": "dim"}


@app.command(
    epilog="Example: `fieldsight-run doctor`, on a Jetson `fieldsight-run doctor --gpu-tests`"
)
def doctor(
    strict: Annotated[
        bool, typer.Option(help="End with exit code 3 if there is a problem")
    ] = False,
    gpu_tests: Annotated[
        bool, typer.Option("--gpu-tests", help="Run the tests that need a GPU, too")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Show what this machine offers, what is wrong with it and what to do about it."""
    from edge_runtime.doctor import examine, missing_packages
    from edge_runtime.doctor.gpu_tests import run_gpu_tests

    findings = examine()
    _show(findings)
    missing = missing_packages(findings)
    report: dict[str, Any] = {
        "findings": [asdict(finding) for finding in findings],
        "missing_packages": missing,
    }
    outcome = None
    try:
        if gpu_tests:
            outcome = run_gpu_tests()
            _show_tests(outcome)
            report["gpu_tests"] = asdict(outcome)
    finally:
        terminal.write_json(json_file, report)
    if missing:
        raise InputError(f"missing packages: {', '.join(missing)}; run pip install fieldsight")
    if outcome and outcome.failed:
        raise RefusedError(f"{len(outcome.failed)} GPU tests failed; do not use this machine's GPU")
    problems = [finding.name for finding in findings if finding.verdict == "problem"]
    if strict and problems:
        raise RefusedError(f"problems: {', '.join(problems)}; see the remedies above")
    terminal.next_command("fieldsight-run", "info", "NAME.bundle")


def _show(findings: list[Finding]) -> None:
    """One line a finding; remedies stand below theirs."""
    heading = None
    for finding in findings:
        if finding.heading != heading:
            heading = finding.heading
            terminal.console.print(heading, style="bold italic", markup=False)
        line = Text("  ")
        line.append(f"{finding.verdict:8}", style=_STYLES[finding.verdict])
        line.append(finding.name, style="bold")
        if finding.found != "absent":
            line.append(f": {finding.found}")
        if finding.remedy:
            line.append(f" -> {finding.remedy}", style="dim")
        terminal.console.print(line, soft_wrap=True, highlight=False)


def _show_tests(outcome: Outcome) -> None:
    """Counts, each failure, and why tests were skipped; the names of all are in the JSON file."""
    terminal.console.print("GPU tests", style="bold italic")
    lines = [("passed", "green", f"{len(outcome.passed)} tests")]
    for reason, count in Counter(outcome.skipped.values()).items():
        lines.append(("skipped", "yellow", f"{count} tests: {reason}"))
    lines += [("failed", "red", f"{name}: {reason}") for name, reason in outcome.failed.items()]
    for verdict, style, text in lines:
        line = Text(f"  {verdict:8}", style=style).append(text, style="default")
        terminal.console.print(line, soft_wrap=True, highlight=False)
