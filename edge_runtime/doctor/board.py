"""A Jetson: its model, JetPack, power mode and clocks."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine, NoAnswer

# L4T release and revision of each JetPack (developer.nvidia.com/embedded/jetpack-archive).
JETPACKS = {
    "36.2": "6.0 DP",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
SUPPORTED = ("36", "38", "39")  # releases that Dockerfile.jetson has an image for
_RELEASE = re.compile(r"# R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3}){0,2})\b")
_CLOCK = re.compile(r"^(GPU|gpu-gpc-0) MinFreq=(\d{1,18}) MaxFreq=(\d{1,18})", re.MULTILINE)
_MODE = re.compile(r"NV Power Mode:\s*(\S{1,40})")
_MODEL = re.compile(r"^<\s*POWER_MODEL ID=(\d{1,3}) NAME=(MAXN\w{0,20})\s*>", re.MULTILINE)
_JTOP = """
import json
from jtop import jtop
with jtop() as jetson:
    jetson.ok()
    print(json.dumps({"mode": str(jetson.nvpmodel), "locked": bool(jetson.jetson_clocks)}))
"""


def l4t(machine: Machine) -> tuple[str, str] | None:
    """L4T release and revision, such as ("36", "4.3"); None where this is no Jetson.

    Raises:
        ValueError: /etc/nv_tegra_release is there and does not tell.
    """
    text = machine.read("/etc/nv_tegra_release")
    if text is None:
        return None
    if match := _RELEASE.match(text):
        return match[1], match[2]
    raise ValueError(f"/etc/nv_tegra_release begins with '{text[:40]}'")


def is_jetson(machine: Machine) -> bool:
    """Whether anything says that this is one."""
    compatible = machine.read("/proc/device-tree/compatible") or ""
    return "nvidia,tegra" in compatible or machine.read("/etc/nv_tegra_release") is not None


@probe("board", "model")
def model(machine: Machine) -> Answer:
    """What the device tree calls it."""
    name = machine.read("/proc/device-tree/model")
    return Answer.ok(name[:80]) if name else Answer.absent()


@probe("board", "JetPack")
def jetpack(machine: Machine) -> Answer:
    """JetPack by its L4T release."""
    try:
        release = l4t(machine)
    except ValueError as error:
        return Answer.warning(str(error), "expected '# R36 (release), REVISION: 4.3, ...'")
    if release is None:
        return Answer.absent("only on a Jetson" if not is_jetson(machine) else "")
    major, revision = release
    full = f"{major}.{revision}"
    name = JETPACKS.get(full) or JETPACKS.get(full.removesuffix(".0")) or "of unknown number"
    found = f"{name} (L4T {full})"
    if major in SUPPORTED:
        return Answer.ok(found)
    return Answer.problem(found, "JetPack 6 or 7 is needed; flash the board with one of them")


def _jtop(machine: Machine) -> dict[str, Any]:
    """Power mode and clocks by jetson-stats, where it is installed and its service runs."""
    if not machine.has_module("jtop"):
        return {}
    try:
        answer = json.loads(machine.ask([sys.executable, "-c", _JTOP]) or "{}")
    except (ValueError, NoAnswer):
        return {}
    return answer if isinstance(answer, dict) else {}


@probe("board", "power mode")
def power_mode(machine: Machine) -> Answer:
    """nvpmodel's mode: all but MAXN cap the clocks."""
    if not is_jetson(machine):
        return Answer.absent("only on a Jetson")
    mode = _jtop(machine).get("mode")
    if not isinstance(mode, str):
        match = _MODE.search(machine.ask(["nvpmodel", "-q"]) or "")
        mode = match[1] if match else None
    if mode is None:
        return Answer.absent("nvpmodel cannot be asked here; in a container, ask the board itself")
    if mode.startswith("MAXN"):
        return Answer.ok(mode)
    fastest = _MODEL.search(machine.read("/etc/nvpmodel.conf") or "")
    remedy = (
        f"sudo nvpmodel -m {fastest[1]}  # {fastest[2]}" if fastest else "sudo nvpmodel -m MODE"
    )
    return Answer.warning(f"{mode}: clocks are capped", f"for full speed: {remedy}")


def _gpu_clocks(machine: Machine) -> tuple[int, int] | None:
    """Lowest and highest clock of the GPU in Hz, by jetson_clocks or the kernel."""
    if match := _CLOCK.search(machine.ask(["jetson_clocks", "--show"]) or ""):
        return int(match[2]), int(match[3])
    for folder in machine.glob("/sys/class/devfreq/*gpu*"):
        low, high = (machine.number(f"{folder}/{end}_freq") for end in ("min", "max"))
        if low is not None and high is not None:
            return low, high
    return None


@probe("board", "clocks")
def clocks(machine: Machine) -> Answer:
    """Whether the GPU's clock is held at its highest."""
    if not is_jetson(machine):
        return Answer.absent("only on a Jetson")
    remedy = "for steady latency: sudo jetson_clocks"
    limits = _gpu_clocks(machine)
    if limits is None:
        locked = _jtop(machine).get("locked")
        if locked is None:
            return Answer.absent("the GPU's clock cannot be read here")
        return Answer.ok("held") if locked else Answer.warning("floating", remedy)
    low, high = (limit / 1e6 for limit in limits)
    if low >= high:
        return Answer.ok(f"GPU held at {high:.0f} MHz")
    return Answer.warning(f"GPU floats between {low:.0f} and {high:.0f} MHz", remedy)
