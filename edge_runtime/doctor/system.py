"""The program, its Python and what they run on."""

from __future__ import annotations

import os
import platform

from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine


@probe("system", "fieldsight")
def fieldsight(machine: Machine) -> Answer:
    """This program's version."""
    from edge_runtime import __version__

    return Answer.ok(__version__)


@probe("system", "python")
def python(machine: Machine) -> Answer:
    """The interpreter's version."""
    return Answer.ok(platform.python_version())


@probe("system", "machine")
def architecture(machine: Machine) -> Answer:
    """Kernel and architecture."""
    return Answer.ok(f"{platform.system()} {platform.release()} {platform.machine()}")


@probe("system", "operating system")
def operating_system(machine: Machine) -> Answer:
    """The distribution's own name."""
    for line in (machine.read("/etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return Answer.ok(value.strip("\"'")[:80])
    return Answer.absent()


@probe("system", "cpu cores")
def cores(machine: Machine) -> Answer:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return Answer.ok(str(len(affinity(0)) if affinity else os.cpu_count()))
