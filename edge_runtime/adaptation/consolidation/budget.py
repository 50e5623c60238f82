"""How much a consolidation may use: time, energy, and heat."""

from __future__ import annotations

import logging
import time

from edge_runtime.adaptation.consolidation.checkpoint import Spent
from edge_runtime.adaptation.power import battery, thermal_margin, watts
from edge_runtime.doctor.machine import Machine
from edge_runtime.errors import InputError

log = logging.getLogger(__name__)
_COOL, _HOT = 15.0, 7.0  # degrees below the kernel's limit: goes on above, rests below
_REST_S = 5.0
_LOOK_S = 2.0  # between looks at the machine
_LEAST_BATTERY = 0.3


class Budget:
    """Counts what is spent and says when to stop. Resting until the machine is cool is not spent.

    Args:
        minutes: Most wall-clock time of learning; None for no limit.
        watt_hours: Most energy of the whole board; None for no limit.
        spent: What earlier starts of the run used.
        machine: Whose temperature, power and battery are read.

    Raises:
        InputError: An energy limit was given and power cannot be measured here.
    """

    def __init__(
        self,
        minutes: float | None = None,
        watt_hours: float | None = None,
        spent: Spent | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.machine = machine or Machine()
        self.minutes, self.watt_hours = minutes, watt_hours
        self.spent = spent or Spent()
        self._power = watts(self.machine)
        if watt_hours is not None and self._power is None:
            raise InputError(
                "a limit on energy needs a board that measures its power (a Jetson's INA3221); "
                "none was found: give --minutes instead"
            )
        self._last = self._looked = time.monotonic()

    def exhausted(self) -> str | None:
        """Account for the time since the last call; why to stop now, or None."""
        now = time.monotonic()
        self._spend(now - self._last)
        self._last = now
        if self.minutes is not None and self.spent.seconds >= 60 * self.minutes:
            return f"{self.minutes:g} minutes are used up"
        energy = self.spent.watt_hours
        if self.watt_hours is not None and energy is not None and energy >= self.watt_hours:
            return f"{self.watt_hours:g} Wh are used up"
        if now - self._looked < _LOOK_S:
            return None
        self._looked = now
        self._power = watts(self.machine)
        charge = battery(self.machine)
        if charge is not None and charge < _LEAST_BATTERY:
            return f"the battery is at {charge:.0%} and discharging"
        self._cool_down()
        return None

    def _spend(self, seconds: float) -> None:
        energy = self.spent.watt_hours
        if self._power is not None:
            energy = (energy or 0.0) + self._power * seconds / 3600
        self.spent = Spent(self.spent.seconds + seconds, energy)

    def _cool_down(self) -> None:
        """Rest while the machine is near the temperature at which the kernel acts."""
        margin = thermal_margin(self.machine)
        if margin is None or margin >= _HOT:
            return
        log.warning("%.0f degrees below the kernel's limit: resting until it is cooler", margin)
        while margin is not None and margin < _COOL:
            time.sleep(_REST_S)
            margin = thermal_margin(self.machine)
        self._last = time.monotonic()
