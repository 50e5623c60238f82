"""Memory, swap, disk and temperature."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine

_MEMORY_LEAST, _MEMORY_GOOD = 300e6, 1e9  # bytes available
_DISK_LEAST, _DISK_GOOD = 1e9, 5e9  # bytes free
_HOT, _CRITICAL = 15.0, 5.0  # degrees below the point at which the kernel acts
_UNKNOWN_LIMIT = 100.0  # degrees Celsius, where a zone does not tell its own


def _meminfo(machine: Machine) -> dict[str, float]:
    """/proc/meminfo in bytes."""
    lines = re.findall(r"^(\w+):\s+(\d{1,15}) kB$", machine.read("/proc/meminfo") or "", re.M)
    return {name: int(value) * 1024.0 for name, value in lines}


@probe("resources", "memory")
def memory(machine: Machine) -> Answer:
    """Memory in all and to be had now; on a Jetson the GPU's, too."""
    info = _meminfo(machine)
    total, available = info.get("MemTotal"), info.get("MemAvailable")
    if total is None or available is None:
        return Answer.absent("/proc/meminfo does not tell")
    found = f"{total / 1e9:.1f} GB, {available / 1e9:.1f} GB available"
    remedy = "end other programs; on a Jetson: sudo systemctl set-default multi-user.target"
    if available < _MEMORY_LEAST:
        return Answer.problem(found, remedy)
    return Answer.warning(found, remedy) if available < _MEMORY_GOOD else Answer.ok(found)


@probe("resources", "swap")
def swap(machine: Machine) -> Answer:
    """Swap; one that is in use makes latency uneven."""
    info = _meminfo(machine)
    total, free = info.get("SwapTotal"), info.get("SwapFree")
    if not total or free is None:
        return Answer.absent()
    used = total - free
    found = f"{total / 1e9:.1f} GB, {used / 1e9:.1f} GB used"
    if used > total / 2:
        return Answer.warning(found, "memory is short; end other programs")
    return Answer.ok(found)


@probe("resources", "disk")
def disk(machine: Machine) -> Answer:
    """Room for built engines and adapters."""
    places = [machine.environ.get("FIELDSIGHT_CACHE", ""), machine.environ.get("HOME", ""), "/"]
    for place in filter(None, places):
        if space := machine.space(place):
            found = f"{space[1] / 1e9:.1f} GB free at {place}"
            if space[1] < _DISK_LEAST:
                return Answer.problem(found, "make room, for instance with docker system prune")
            if space[1] < _DISK_GOOD:
                return Answer.warning(found, "make room; an update needs several GB")
            return Answer.ok(found)
    return Answer.absent("no file system to look at")


def _limit(machine: Machine, zone: str) -> float | None:
    """Lowest temperature at which the kernel throttles or stops the machine, in Celsius."""
    limits = []
    for kind in machine.glob(f"{zone}/trip_point_*_type"):
        value = machine.number(kind.removesuffix("type") + "temp")
        if machine.read(kind) in ("passive", "hot", "critical") and value and 0 < value < 200_000:
            limits.append(value / 1000)
    return min(limits, default=None)


@dataclass(frozen=True, slots=True)
class Zone:
    """A thermal zone: its name, temperature, and the one at which the kernel acts, in Celsius."""

    name: str
    degrees: float
    limit: float


def nearest_zone(machine: Machine) -> Zone | None:
    """The zone that is nearest to its limit; zones that are off do not count."""
    zones = []
    for zone in machine.glob("/sys/class/thermal/thermal_zone*"):
        value = machine.number(f"{zone}/temp")
        if value is not None and 0 < value < 200_000:
            name = (machine.read(f"{zone}/type") or zone.rpartition("/")[2])[:40]
            zones.append((name, value / 1000, _limit(machine, zone)))
    # One zone's limit often holds for all: only the junction's tells it.
    shared = min((limit for *_, limit in zones if limit), default=_UNKNOWN_LIMIT)
    known = [Zone(name, degrees, limit or shared) for name, degrees, limit in zones]
    return min(known, key=lambda zone: zone.limit - zone.degrees, default=None)


@probe("resources", "temperature")
def temperature(machine: Machine) -> Answer:
    """The zone that is nearest to its limit."""
    zone = nearest_zone(machine)
    if zone is None:
        return Answer.absent("no thermal zone can be read")
    margin = zone.limit - zone.degrees
    found = f"{zone.name} {zone.degrees:.0f} °C, acts at {zone.limit:.0f} °C"
    remedy = "check fan and heat sink, or choose a lower power mode"
    if margin < _CRITICAL:
        return Answer.problem(found, remedy)
    return Answer.warning(found, remedy) if margin < _HOT else Answer.ok(found)
