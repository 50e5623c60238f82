"""Questions to a machine, their registry, and the verdicts they give."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edge_runtime.doctor.machine import Machine

Verdict = Literal["ok", "warning", "problem", "absent"]
_THEMES = ("system", "board", "gpu", "ros", "network", "resources", "cameras", "packages")
_LONGEST = 300  # characters of what was found


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found.

    Attributes:
        verdict: "ok"; "warning", it works but not as it could; "problem", it does not work;
            "absent", not there, which may be as it should.
        found: What is there, for people.
        remedy: What to do, unless all is well.
    """

    verdict: Verdict
    found: str
    remedy: str = ""

    @classmethod
    def ok(cls, found: str) -> Answer:
        """All is well."""
        return cls("ok", found)

    @classmethod
    def warning(cls, found: str, remedy: str) -> Answer:
        """It works, but not as it could."""
        return cls("warning", found, remedy)

    @classmethod
    def problem(cls, found: str, remedy: str) -> Answer:
        """It does not work."""
        return cls("problem", found, remedy)

    @classmethod
    def absent(cls, remedy: str = "") -> Answer:
        """It is not there."""
        return cls("absent", "absent", remedy)


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer and what it answers."""

    heading: str
    name: str
    verdict: Verdict
    found: str
    remedy: str


Probe = Callable[[Machine], Answer]
_PROBES: dict[tuple[str, str], Probe] = {}


def probe(heading: str, name: str) -> Callable[[Probe], Probe]:
    """Register a question.

    Args:
        heading: What it belongs to.
        name: What it asks about; unique under the heading.
    """

    def register(function: Probe) -> Probe:
        _PROBES[heading, name] = function
        return function

    return register


def examine(machine: Machine | None = None) -> list[Finding]:
    """Ask every question; one that cannot be answered is a warning, never the end.

    Args:
        machine: What to examine; this machine if None.

    Returns:
        Findings in a fixed order, those of one heading together.
    """
    machine = machine or Machine()
    for theme in _THEMES:
        importlib.import_module(f"{__package__}.{theme}")
    findings = []
    for (heading, name), function in _PROBES.items():
        try:
            answer = function(machine)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            answer = Answer.warning(text, "this could not be examined; report it")
        found = " ".join(answer.found.split())[:_LONGEST]
        findings.append(Finding(heading, name, answer.verdict, found, answer.remedy))
    return findings


def missing_packages(findings: list[Finding]) -> list[str]:
    """Packages that the runtime cannot do without and that are not installed."""
    return [f.name for f in findings if f.heading == "packages" and f.verdict == "problem"]
