"""Cameras that the kernel offers by V4L2."""

from __future__ import annotations

from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine

_SHOWN = 8


@probe("robot", "cameras")
def cameras(machine: Machine) -> Answer:
    """Video devices by name, and whether this user may open them."""
    nodes = machine.glob("/dev/video[0-9]*")
    if not nodes:
        return Answer.absent("plug one in; into a container: docker run --device /dev/video0")
    blocked = [node for node in nodes if not machine.can_use(node)]
    if blocked:
        return Answer.problem(
            f"no permission for {', '.join(blocked[:_SHOWN])}",
            "sudo usermod -aG video $USER and log in again; in a container --group-add video",
        )
    named = []
    for node in nodes[:_SHOWN]:
        name = machine.read(f"/sys/class/video4linux/{node.rpartition('/')[2]}/name")
        named.append(f"{node} ({name[:40]})" if name else node)
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return Answer.ok(", ".join(named) + more)
