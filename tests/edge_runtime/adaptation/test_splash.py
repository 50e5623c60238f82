"""Dirt that lands on the lens is told from scenes that move, cut, stand still or change light."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from colours import World

from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.shifts import ShiftStream, parse_shifts
from edge_runtime.adaptation.splash import SplashMonitor
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

HEIGHT, WIDTH = 192, 256


def panorama(seed: int, width: int = 900) -> np.ndarray:
    """A wide street: textured boxes before a textured ground, uint8 [H, width, 3]."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, width, 3), 120, np.float32)
    for _ in range(150):
        x, y = rng.integers(0, width), rng.integers(0, HEIGHT)
        w, h = rng.integers(10, 60, 2)
        image[y : y + h, x : x + w] = rng.uniform(20, 235, 3)
    return np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def drive(frames: int, step: int = 2, seed: int = 0) -> list[np.ndarray]:
    """A view that moves along the street, `step` pixels a frame, with the sensor's noise."""
    wide, rng = panorama(seed), np.random.default_rng(seed + 1)
    views = [wide[:, step * i : step * i + WIDTH] for i in range(frames)]
    return [np.clip(v + rng.normal(0, 1, v.shape), 0, 255).astype(np.uint8) for v in views]


def drawn(frames: list[np.ndarray], shift: str, seed: int = 0) -> list[np.ndarray]:
    stream = ShiftStream(parse_shifts(shift), seed)
    return [stream.image(frame, index) for index, frame in enumerate(frames)]


def told(frames: Iterable[np.ndarray]) -> list[tuple[int, str]]:
    monitor = SplashMonitor()
    said = [monitor.update(frame) for frame in frames]
    return [(index, what) for index, what in enumerate(said) if what]


@pytest.mark.parametrize("seed", range(4))
def test_dirt_is_told_once_it_has_stayed_and_when_it_is_wiped_off(seed: int) -> None:
    found = told(drawn(drive(90, step=1, seed=seed), "dirt:0.7@20-50", seed))
    assert found == [(28, "dirt on the lens"), (50, "lens clean")]


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_a_scene_that_moves_or_stands_still_is_clean(step: int) -> None:
    for seed in range(3):
        assert told(drive(100, step, seed)) == []


def test_another_scene_is_no_dirt() -> None:
    cuts = [frame for seed in range(12) for frame in drive(12, 1, seed)]
    assert told(cuts) == []


@pytest.mark.parametrize("shift", ["noise:0.8", "dark:0.8", "occlusion:0.2", "cast:0.6"])
def test_other_shifts_that_hold_all_along_are_no_dirt(shift: str) -> None:
    assert told(drawn(drive(60), shift)) == []


def test_a_shift_that_explains_it_is_no_dirt(world: World) -> None:
    """Everything is far from home for this learner, so that all is suspect."""
    perception = Perception(world.bundle, threads=1)
    learner = Learner(world.bundle, mode="off", threshold=1e-9)
    stream = Adapting(perception, learner)
    for index, image in enumerate(drawn(drive(60, 1), "dirt:0.7@20-40")):
        stream(Frame(image, index, ""))
    assert stream.trace.count("shift") == 1 and not stream.trace.count("dirt on the lens")


def test_a_camera_of_another_size_begins_anew() -> None:
    monitor = SplashMonitor()
    for frame in drawn(drive(40, 1), "dirt:0.7@20-"):
        monitor.update(frame)
    assert monitor.dirty
    assert monitor.update(np.zeros((48, 64, 3), np.uint8)) is None and not monitor.dirty


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (500, 7), (48, 64)])
def test_images_of_any_size_are_looked_at(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    monitor = SplashMonitor()
    for _ in range(20):
        monitor.update(rng.integers(0, 256, (*size, 3), np.uint8))


def test_the_learner_says_it_and_keeps_its_adapter(world: World) -> None:
    perception = Perception(world.bundle, threads=1)
    learner = Learner(world.bundle, mode="shadow", threshold=1e9)
    stream = Adapting(perception, learner)
    for index, image in enumerate(drawn(drive(60, 1), "dirt:0.7@20-40")):
        stream(Frame(image, index, ""))
    assert stream.trace.events == [(28, "dirt on the lens"), (40, "lens clean")]
    assert learner.counters["dirt on the lens"] == 1 and not learner.adapted
