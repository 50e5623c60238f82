"""Buffers of the kernel that images travel through."""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine

# As in deploy/board/60-fieldsight-dds.conf; the fragments' value and time as in ROS 2's guide
# "DDS tuning information".
_LEAST = {"net.core.rmem_max": 67108864, "net.ipv4.ipfrag_high_thresh": 134217728}
_MOST = {"net.ipv4.ipfrag_time": 3}
_SHARED_LEAST, _SHARED_GOOD = 128 << 20, 512 << 20  # bytes; each participant takes 32 MiB


def _kernel(name: str, wanted: int, enough: Callable[[int], bool]) -> None:
    """Register a question about a setting of the kernel."""

    @probe("DDS", name)
    def ask(machine: Machine) -> Answer:
        value = machine.number("/proc/sys/" + name.replace(".", "/"))
        if value is None:
            return Answer.absent("cannot be read here")
        if enough(value):
            return Answer.ok(str(value))
        remedy = f"for images between machines: sudo sysctl -w {name}={wanted}"
        return Answer.warning(str(value), remedy)


for _name, _value in _LEAST.items():
    _kernel(_name, _value, _value.__le__)
for _name, _value in _MOST.items():
    _kernel(_name, _value, _value.__ge__)


@probe("DDS", "shared memory")
def shared_memory(machine: Machine) -> Answer:
    """Room in /dev/shm, through which images pass between processes."""
    space = machine.space("/dev/shm")
    if space is None:
        return Answer.absent("no /dev/shm")
    total, free = space
    found = f"{total / 1e6:.0f} MB, {free / 1e6:.0f} MB free"
    remedy = "in a container: docker run --ipc host, or --shm-size 1g"
    if free < _SHARED_LEAST:
        return Answer.problem(found, remedy)
    if free < _SHARED_GOOD:
        return Answer.warning(found, remedy)
    return Answer.ok(found)
