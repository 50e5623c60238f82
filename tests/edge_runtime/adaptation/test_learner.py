"""The learner, end to end on a network that coloured light ruins: it mends, returns, remembers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import IDENTITY, World, scene
from robot import CAST, Robot

from edge_runtime.adaptation.guard import Guard, GuardOptions
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.limits import Limits
from edge_runtime.adaptation.memory import PlaceMemory
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.store import AdapterStore
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception


@pytest.fixture
def memory(world: World) -> PlaceMemory:
    return PlaceMemory(Reference.of(world.bundle), near=1.0)


def test_at_home_nothing_happens(world: World) -> None:
    robot = Robot(world)
    robot.drive(200)
    assert robot.events.count("promoted") == 0 and not robot.learner.adapted
    assert (robot.perception.adapter == IDENTITY).all()


def test_a_shift_is_mended_and_home_is_as_before(world: World, memory: PlaceMemory) -> None:
    plain = Robot(world, mode="off")
    before = plain.drive(80, CAST)
    home = plain.drive(40)
    robot = Robot(world, memory=memory)
    after = robot.drive(80, CAST)
    assert "promoted" in robot.events and "alarm" not in robot.events
    lost = np.mean(home) - np.mean(before[40:])
    assert np.mean(after[40:]) - np.mean(before[40:]) > 0.5 * lost > 0.05
    back = robot.drive(40)
    assert "home" in robot.events and (robot.perception.adapter == IDENTITY).all()
    assert back[HOME_FRAMES:] == home[HOME_FRAMES:]


HOME_FRAMES = 3  # until a return is noticed


def test_a_known_place_is_recognised_within_a_few_frames(world: World, memory: PlaceMemory) -> None:
    robot = Robot(world, memory=memory)
    first = robot.drive(80, CAST)
    robot.drive(40)
    assert len(memory.places) == 1
    robot.count = 40  # the scenes of the first visit's second half
    second = robot.drive(40, CAST)
    assert "recalled" in robot.events and robot.events.count("promoted") == 1
    assert np.mean(second[5:]) > np.mean(first[45:]) - 0.03


def test_the_shadow_changes_nothing_and_decides_the_same(world: World) -> None:
    robot, plain = Robot(world, mode="shadow"), Robot(world, mode="off")
    assert robot.drive(60, CAST) == plain.drive(60, CAST)
    assert "promoted" in robot.events and robot.learner.adapted
    assert (robot.learner.adapter == IDENTITY).all() and not plain.events.count("promoted")


def test_a_strict_guard_refuses_and_is_asked_again_ever_less_often(world: World) -> None:
    never = GuardOptions(limits=Limits(confidence_gain=1, agreement_gain=1, class_gain=1))
    robot = Robot(world, guard=Guard(world.bundle, never))
    robot.drive(90, CAST)
    assert robot.events.count("refused") == 5 and "promoted" not in robot.events
    attempts = [index for index, what in robot.stream.trace.events if what == "refused"]
    waited = np.diff(attempts)
    assert (waited >= 4 * 2 ** np.arange(4)).all()
    assert (robot.perception.adapter == IDENTITY).all()


@pytest.mark.parametrize("fault", ["black", "white", "frozen"])
def test_faults_teach_nothing(world: World, fault: str) -> None:
    robot = Robot(world)
    robot.drive(10)
    frozen = scene(5)
    for index in range(60):
        value = {"black": frozen * 0, "white": frozen * 0 + 255}.get(fault, frozen)
        robot.stream(Frame(value, index, ""))
    assert robot.learner.counters["faults"] >= 59
    assert "promoted" not in robot.events and not robot.learner.adapted


def test_freeze_rollback_reset_and_snapshot(world: World, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path, world.bundle)
    robot = Robot(world, store=store)
    robot.drive(40, CAST)
    promoted = store.load()
    assert promoted is not None and promoted.note["event"] == "promoted"
    robot.learner.freeze()
    held = robot.learner.adapter.copy()
    robot.drive(20, CAST)
    assert (robot.learner.adapter == held).all()
    version = robot.learner.snapshot()
    stored = store.load(version)
    assert stored is not None and (stored.adapter == held).all()
    robot.learner.freeze(False)
    decision = robot.learner.rollback()
    assert decision.changed and (decision.adapter == IDENTITY).all()
    assert not robot.learner.reset().changed


def test_a_store_that_cannot_be_written_stops_nothing(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    robot = Robot(world, store=AdapterStore(tmp_path / "file", world.bundle))
    robot.drive(40, CAST)
    assert "promoted" in robot.events and robot.learner.adapted
    assert robot.learner.snapshot() is None


def test_results_without_statistics_are_faults_not_lessons(world: World) -> None:
    from dataclasses import replace

    learner = Learner(world.bundle)
    perception = Perception(world.bundle, threads=1)
    result = perception(world.frames[0])
    assert learner.observe(world.frames[0], replace(result, statistics=None)).fault
    spoilt = np.full(12, np.nan, np.float32)
    decision = learner.observe(world.frames[1], replace(result, statistics=spoilt))
    assert decision.fault == "not finite" and not decision.changed


def test_controls_may_come_from_another_thread(world: World) -> None:
    robot = Robot(world)
    stop = threading.Event()
    errors: list[BaseException] = []

    def meddle() -> None:
        try:
            while not stop.is_set():
                robot.learner.freeze(True)
                robot.learner.rollback()
                robot.learner.freeze(False)
                robot.learner.reset()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=meddle)
    thread.start()
    robot.drive(60, CAST)
    stop.set()
    thread.join()
    assert not errors


def test_an_unknown_mode_is_refused(world: World) -> None:
    with pytest.raises(InputError, match="mode 'on!'"):
        Learner(world.bundle, mode="on!")


def test_a_trial_spends_few_passes_on_any_one_frame(world: World) -> None:
    """And is ready when the shift is declared, since it begins at the first suspicion."""
    robot = Robot(world)
    passes, spent = 0, []
    probe = robot.learner._course.probe

    def counted(frame: Frame, adapter: np.ndarray) -> Any:
        nonlocal passes
        passes += 1
        return probe(frame, adapter)

    robot.learner._course.probe = counted
    declared = promoted = None
    robot.drive(10)
    for index in range(40):
        before = passes
        robot.drive(1, CAST)
        spent.append(passes - before)
        if "shift" in robot.events and declared is None:
            declared = index
        if "promoted" in robot.events and promoted is None:
            promoted = index
    assert declared is not None and promoted is not None and promoted <= declared + 2
    assert max(spent) == 4 and sum(spent) == 12
