"""A learner that was killed goes on where it was, and not where it had left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from colours import IDENTITY, World, scene

from edge_runtime.adaptation.guard import Guard, GuardOptions
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.limits import Limits
from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.store import AdapterStore
from edge_runtime.adaptation.trial import probe_of
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

LIGHT = np.array([1.0, 0.8, 0.6])


class Life:
    """A learner from one start to the next, on what the one before it left in the store."""

    def __init__(self, world: World, folder: Path, mode: str = "on") -> None:
        perception = Perception(world.bundle, threads=1)
        self.store = AdapterStore(folder, world.bundle)
        probe = probe_of(perception)
        guard = Guard(world.bundle, GuardOptions(limits=Limits(agreement_loss=0.3)))
        self.learner = Learner(world.bundle, "align", mode, self.store, None, guard, probe)
        self.decision = self.learner.resume()
        self.stream = Adapting(perception, self.learner)

    def drive(self, frames: int, shifted: bool) -> list[str]:
        """Events of a drive through new scenes."""
        for index in range(frames):
            image = scene(2000 + index)
            image = (image * LIGHT).astype(np.uint8) if shifted else image
            self.stream(Frame(image, index, ""))
        return [what for _, what in self.stream.trace.events]


def test_without_a_store_or_in_an_empty_one_there_is_nothing_to_resume(
    world: World, tmp_path: Path
) -> None:
    assert Learner(world.bundle).resume().event is None
    life = Life(world, tmp_path)
    assert life.decision.event is None and (life.decision.adapter == IDENTITY).all()


def test_the_adapter_in_use_is_resumed_and_followed_on(world: World, tmp_path: Path) -> None:
    assert "promoted" in Life(world, tmp_path).drive(40, shifted=True)
    life = Life(world, tmp_path)
    stored = life.store.load()
    assert life.decision.event == "resumed" and life.decision.changed and stored is not None
    assert (life.decision.adapter == stored.adapter).all()
    assert not {"promoted", "home", "alarm"} & set(life.drive(20, shifted=True))
    assert life.learner.adapted and (life.learner.adapter != stored.adapter).any()


def test_resumed_elsewhere_it_goes_home_within_a_few_frames(world: World, tmp_path: Path) -> None:
    Life(world, tmp_path).drive(40, shifted=True)
    life = Life(world, tmp_path)
    assert life.decision.event == "resumed"
    assert "home" in life.drive(6, shifted=False) and not life.learner.adapted


@pytest.mark.parametrize("leave", ["home", "rolled back", "reset"])
def test_what_was_left_is_not_resumed(world: World, tmp_path: Path, leave: str) -> None:
    life = Life(world, tmp_path)
    assert "promoted" in life.drive(40, shifted=True)
    if leave == "home":
        assert "home" in life.drive(40, shifted=False)
    else:
        getattr(life.learner, {"rolled back": "rollback"}.get(leave, leave))()
    stored = life.store.load()
    assert stored is not None and stored.note["event"] == leave
    assert (stored.adapter == IDENTITY).all()
    again = Life(world, tmp_path)
    assert again.decision.event is None and not again.learner.adapted


@pytest.mark.parametrize("place", [None, "fog", [1.0, 2.0], [float("nan")] * 6, [[1.0] * 6], {}])
def test_an_adapter_without_its_place_is_not_resumed(
    world: World, tmp_path: Path, place: object
) -> None:
    life = Life(world, tmp_path)
    adapter = np.array([0.8, 1, 1, 0, 0, 0] * 2, np.float32)
    life.store.save(adapter, {"place": place})
    assert Life(world, tmp_path).decision.event is None
    life.store.save(adapter, {"place": [0.4, 0.4, 0.4, 0.1, 0.1, 0.1]})
    assert Life(world, tmp_path).decision.event == "resumed"
    assert Life(world, tmp_path, mode="off").decision.event is None
    life.store.save(adapter * 9, {"place": [0.4, 0.4, 0.4, 0.1, 0.1, 0.1]})
    assert Life(world, tmp_path).decision.event is None, "outside of what the guard allows"


def test_a_fault_puts_an_attempt_off_and_not_its_chance(world: World, tmp_path: Path) -> None:
    life = Life(world, tmp_path)
    black = Frame(np.zeros((48, 64, 3), np.uint8), 0, "")
    life.stream(black)
    events = life.drive(30, shifted=True)
    assert "promoted" in events and "refused" not in events
