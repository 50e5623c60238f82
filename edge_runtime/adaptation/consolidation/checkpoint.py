"""Progress on disk, so that a killed run goes on where it was and ends with the same weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from edge_runtime.adaptation.consolidation.selftraining import SelfTraining
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_bytes


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run has used up, over all its starts.

    Attributes:
        seconds: Wall-clock time of learning.
        watt_hours: Energy of the whole machine, or None where it cannot be measured.
    """

    seconds: float = 0.0
    watt_hours: float | None = None


class Checkpoint:
    """The file that holds a run's state.

    Args:
        path: The file.
        identity: Digest of all that decides the result; the file of another run is not used.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, training: SelfTraining, spent: Spent) -> None:
        """Write the state in one atomic step."""
        notes = {
            "identity": self.identity,
            "step": str(training.step),
            "spent": json.dumps(asdict(spent)),
        }
        state = {name: value.contiguous() for name, value in training.state().items()}
        atomic_write_bytes(self.path, save(state, notes))

    def load(self, training: SelfTraining) -> Spent | None:
        """Restore the state if there is one of this run.

        Returns:
            What the run had spent, or None if there is no such state and it has to begin.

        Raises:
            InputError: The file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                notes = file.metadata() or {}
                if notes.get("identity") != self.identity:
                    return None
                state = {name: file.get_tensor(name) for name in file.keys()}
            spent = json.loads(notes["spent"])
            step = int(notes["step"])
            training.restore(state, step)
            return Spent(float(spent["seconds"]), spent["watt_hours"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(
                f"{self.path}: the state of an unfinished consolidation is damaged ({error}); "
                "remove it to begin again"
            ) from None

    def remove(self) -> None:
        """Forget the run, once its result is safe."""
        self.path.unlink(missing_ok=True)
