"""At home and at a place that is known, frames that look like it may pass; no other frame does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colours import IDENTITY, World, scene
from robot import CAST, Robot

from edge_runtime.adaptation.frame_memory import FrameMemory
from edge_runtime.adaptation.learner import Learner
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame


def settled(world: World, every: int, **given: object) -> Robot:
    """A robot in coloured light for 40 frames, whose strategy says it knows the place."""
    robot = Robot(world, every=every, **given)
    robot.learner.strategy.known = True  # type: ignore[attr-defined]
    robot.drive(40, CAST)
    assert robot.learner.adapted
    return robot


@pytest.mark.parametrize(("every", "share"), [(1, 0.0), (2, 1 / 2), (4, 3 / 4)])
def test_so_many_frames_pass(world: World, every: int, share: float) -> None:
    robot = settled(world, every)
    before = robot.learner.counters["passed"]
    robot.drive(60, CAST)
    passed = (robot.learner.counters["passed"] - before) / 60
    assert 0.8 * share <= passed <= share
    assert robot.learner.adapted


def test_none_passes_where_the_strategy_does_not_know_the_place(world: World) -> None:
    robot = Robot(world)
    robot.drive(5, CAST)
    assert robot.learner.adapted
    before = robot.learner.counters["passed"]
    robot.drive(60, CAST)
    assert robot.learner.adapted and robot.learner.counters["passed"] == before


@pytest.mark.parametrize("shift", [CAST, "noise:0.6", "fog:0.5", "dark:0.6"])
def test_at_home_most_pass_and_a_shift_is_declared_as_soon(world: World, shift: str) -> None:
    found = []
    for every in (1, 3):
        robot = Robot(world, every=every)
        robot.drive(31)
        passed = robot.learner.counters["passed"]
        assert passed == 0 if every == 1 else 15 <= passed <= 20
        robot.drive(12, shift)
        found.append(next(i for i, what in robot.stream.trace.events if what == "shift"))
    assert abs(found[0] - found[1]) <= 1


@pytest.mark.parametrize("start", [30, 31, 32])
def test_a_frozen_camera_at_home_is_noticed_at_once(world: World, start: int) -> None:
    robot = Robot(world)
    robot.drive(start)
    frame = Frame(scene(7), 0, "")
    faults = [robot.learner.observe(frame, robot.perception(frame)).fault for _ in range(5)]
    assert faults == [None, *["frozen"] * 4]


@pytest.mark.parametrize("frames", [40, 41])
def test_the_way_home_is_seen_as_soon_as_if_every_frame_was_looked_at(
    world: World, frames: int
) -> None:
    found = []
    for every in (1, 2):
        robot = settled(world, every)
        robot.drive(frames, CAST)
        home = robot.drive(10)
        assert "home" in robot.events and (robot.perception.adapter == IDENTITY).all()
        found.append(home)
    assert found[0] == found[1]


def test_light_that_flickers_at_half_the_rate_is_not_mistaken_for_home(world: World) -> None:
    robot = settled(world, 2)
    for _ in range(20):
        robot.drive(1)
        robot.drive(1, CAST)
    assert robot.events.count("home") >= 1  # the frames of home were seen, whichever they were


def test_a_broken_camera_is_noticed_within_two_frames(world: World) -> None:
    robot = settled(world, 2)
    decisions = []
    for index in range(2):
        frame = Frame(np.zeros_like(scene(0)), index, "")
        decisions.append(robot.learner.observe(frame, robot.perception(frame)).fault)
    assert "black" in decisions
    result = robot.perception(Frame(scene(3), 0, ""))
    assert result.statistics is not None
    spoilt = replace(result, statistics=np.full_like(result.statistics, np.nan))
    assert robot.learner.observe(Frame(scene(3), 0, ""), spoilt).fault == "not finite"


def test_what_is_known_of_drift_is_told_of_frames_that_pass(world: World) -> None:
    robot = settled(world, 2)
    start = len(robot.stream.trace.drift)
    robot.drive(10, CAST)
    scores = robot.stream.trace.drift[start:]
    assert np.isfinite(scores).all() and len(set(scores)) < 10
    assert robot.events.count("shift") == 1


def test_frames_are_kept_though_others_pass(world: World, tmp_path: Path) -> None:
    frames = FrameMemory(tmp_path, world.bundle)
    robot = settled(world, 2, frames=frames)
    before = robot.learner.counters["kept frames"]
    robot.drive(60, CAST)
    assert robot.learner.counters["kept frames"] >= before + 5


def test_so_few_frames_are_refused(world: World) -> None:
    with pytest.raises(InputError, match="every is 0 frames"):
        Learner(world.bundle, every=0)


@pytest.mark.parametrize("phase", range(4))
def test_a_look_at_something_odd_counts_as_one(world: World, phase: int) -> None:
    robot = settled(world, 4)
    robot.drive(phase, CAST)
    before = robot.learner.counters["passed"]
    robot.drive(1, "dark:0.6")
    assert robot.learner.counters["passed"] == before
    robot.drive(3, CAST)
    assert robot.learner.counters["passed"] == before + 3
    robot.drive(1, CAST)
    assert robot.learner.counters["passed"] == before + 3
