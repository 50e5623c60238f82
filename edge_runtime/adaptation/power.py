"""How warm the machine is, what it draws and what its battery holds, from the kernel's files."""

from __future__ import annotations

import re

from edge_runtime.doctor.machine import Machine
from edge_runtime.doctor.resources import nearest_zone

_INPUT_RAILS = ("VDD_IN", "VDD_TOTAL", "POM_5V_IN", "SYS_VIN", "NC")  # of Jetson boards, in order


def thermal_margin(machine: Machine) -> float | None:
    """Degrees that the hottest zone may still rise before the kernel acts; None if unknown."""
    zone = nearest_zone(machine)
    return None if zone is None else zone.limit - zone.degrees


def watts(machine: Machine) -> float | None:
    """Power that the whole board draws now, by the INA3221 of a Jetson; None where there is none.

    The driver gives volts and amperes of each rail in thousandths, with the rail's name as label
    (Linux kernel, hwmon/ina3221).
    """
    rails: dict[str, float] = {}
    for label in machine.glob("/sys/class/hwmon/hwmon*/in*_label"):
        folder, _, file = label.rpartition("/")
        number = re.sub(r"\D", "", file)
        volts = machine.number(f"{folder}/in{number}_input")
        amperes = machine.number(f"{folder}/curr{number}_input")
        name = machine.read(label)
        if name and volts is not None and amperes is not None and volts > 0 and amperes >= 0:
            rails[name] = volts * amperes / 1e6
    return next((rails[name] for name in _INPUT_RAILS if name in rails), None)


def battery(machine: Machine) -> float | None:
    """Charge of the battery while it is discharging, 0 to 1; None at the charger or without one."""
    for kind in machine.glob("/sys/class/power_supply/*/type"):
        folder = kind.rpartition("/")[0]
        if machine.read(kind) == "Battery" and machine.read(f"{folder}/status") == "Discharging":
            percent = machine.number(f"{folder}/capacity")
            if percent is not None and 0 <= percent <= 100:
                return percent / 100
    return None
