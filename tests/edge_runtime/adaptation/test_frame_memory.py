"""Frames kept for later: different from each other, bounded, whole after any crash."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_frames import filled, seen, stamps

from edge_runtime.adaptation.frame_memory import FrameMemory
from edge_runtime.adaptation.learner import Learner
from edge_runtime.bundle import Bundle
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import InputError
from edge_runtime.frames import Detections, Frame
from edge_runtime.perception import Perception
from edge_runtime.prediction import open_frames


@pytest.fixture
def memory(tmp_path: Path, adaptive_bundle: Bundle) -> FrameMemory:
    return FrameMemory(tmp_path / "frames", adaptive_bundle, most=4, quality=None)


def test_a_frame_comes_back_as_it_was(memory: FrameMemory, adaptive_bundle: Bundle) -> None:
    frame, result = seen(1, (2, 1, 1), stamp=2**62)
    offer = memory.offer(frame, result)
    assert offer.kept and offer.novelty == 2.0
    again = FrameMemory(memory.folder, adaptive_bundle, most=4)
    kept = again.frames[0]
    assert (again.read(kept) == frame.image).all()
    assert (kept.stamp_ns, kept.frame_id, kept.shape) == (2**62, "camera", (24, 24))
    assert kept.shares == pytest.approx([0.5, 0.25, 0.25])
    assert kept.signature == [1, 1, 1, 1, 1, 1]
    assert again.total_bytes == memory.path(kept).stat().st_size


def test_jpeg_keeps_what_matters(tmp_path: Path, adaptive_bundle: Bundle) -> None:
    memory = FrameMemory(tmp_path / "frames", adaptive_bundle)
    frame, result = seen(1)
    smooth = cv2.GaussianBlur(frame.image, (0, 0), 4)
    memory.offer(dataclasses.replace(frame, image=smooth), result)
    kept = memory.frames[0]
    assert kept.name.endswith(".jpg")
    assert np.abs(memory.read(kept).astype(int) - smooth).mean() < 2


def test_near_duplicates_are_refused(memory: FrameMemory) -> None:
    assert memory.offer(*seen(1.0, stamp=1)).kept
    twin = memory.offer(*seen(1.05, stamp=2))  # 0.05^2 / 2 apart
    assert not twin.kept and "nearly the same" in twin.reason
    assert twin.novelty == pytest.approx(0.00125, rel=1e-3)
    assert memory.offer(*seen(1.2, stamp=3)).kept
    assert stamps(memory) == [1, 3]


def test_what_stays_is_spread_out(memory: FrameMemory) -> None:
    for stamp, value in enumerate((0.0, 0.2, 0.4, 0.6, 4.0, 8.0, 12.0)):
        memory.offer(*seen(value, stamp=stamp))
    assert len(memory) == 4
    values = sorted(frame.signature[0] for frame in memory.frames)
    assert values[1:] == [4, 8, 12]
    crowded = memory.offer(*seen(4.15, stamp=9))
    assert not crowded.kept and "worth less" in crowded.reason


def test_rare_classes_stay(memory: FrameMemory) -> None:
    for stamp, value in enumerate((0.0, 1.0, 2.0)):
        memory.offer(*seen(value, (3, 1, 0), stamp=stamp))
    memory.offer(*seen(3.0, (0, 0, 4), stamp=3))
    for stamp, value in enumerate((4.0, 5.0, 6.0, 7.0)):
        memory.offer(*seen(value, (3, 1, 0), stamp=10 + stamp))
    assert 3 in stamps(memory)


def test_bytes_are_bounded_too(tmp_path: Path, adaptive_bundle: Bundle) -> None:
    one = len(cv2.imencode(".png", seen(0)[0].image)[1])
    memory = FrameMemory(
        tmp_path / "frames", adaptive_bundle, most_bytes=3 * one + 100, quality=None
    )
    for stamp in range(8):
        memory.offer(*seen(stamp, stamp=stamp))
        assert memory.total_bytes <= memory.most_bytes
        on_disk = sum(p.stat().st_size for p in memory.folder.glob("0*"))
        assert on_disk == memory.total_bytes
    assert len(memory) == 3
    small = FrameMemory(tmp_path / "small", adaptive_bundle, most_bytes=10)
    assert "larger than" in small.offer(*seen(1)).reason


def test_frames_without_statistics_are_refused(memory: FrameMemory) -> None:
    frame, result = seen(1)
    assert not memory.offer(frame, dataclasses.replace(result, statistics=None)).kept
    broken = np.full(6, np.nan, np.float32)
    assert not memory.offer(frame, dataclasses.replace(result, statistics=broken)).kept
    assert not memory.folder.exists()


def test_a_detector_tells_frames_by_its_objects(memory: FrameMemory) -> None:
    frame, result = seen(1)
    found = Detections(np.zeros((4, 4)), np.ones(4), np.array([0, 1, 1, 1], np.int32))
    memory.offer(frame, dataclasses.replace(result, segmentation=None, detections=found))
    assert memory.frames[0].shares == [0.25, 0.75]
    memory.clear()
    assert len(memory) == 0 and not list(memory.folder.glob("0*"))


@pytest.mark.parametrize("wrong", [{"most": 0}, {"quality": 101}, {"duplicate": -1}])
def test_senseless_settings_are_refused(tmp_path, adaptive_bundle, wrong) -> None:
    with pytest.raises(InputError, match="must be at least"):
        FrameMemory(tmp_path, adaptive_bundle, **wrong)


def test_the_folder_is_a_folder_of_images(memory: FrameMemory) -> None:
    filled(memory)
    (memory.folder / "holiday.jpg").write_bytes(b"somebody else's")
    memory.offer(*seen(9, stamp=9))
    (memory.folder / "holiday.jpg").unlink()
    with open_frames(str(memory.folder)) as source:
        images = [frame.image for frame in source]
    assert len(images) == 4
    assert (images[0] == memory.read(memory.frames[0])).all()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.floats(-9, 9, width=32), st.integers(0, 2)), max_size=15))
def test_it_stays_bounded_and_without_duplicates(
    tmp_path_factory: pytest.TempPathFactory, adaptive_bundle: Bundle, steps: list
) -> None:
    folder = tmp_path_factory.mktemp("frames")
    memory = FrameMemory(folder, adaptive_bundle, most=3, quality=None)
    for stamp, (value, label) in enumerate(steps):
        shares = [0, 0, 0]
        shares[label] = 4
        before = len(memory)
        offer = memory.offer(*seen(value, tuple(shares), stamp))
        assert offer.kept or offer.novelty <= memory.duplicate or before == 3
        assert len(memory) == min(before + offer.kept, 3)
        apart = memory._apart + np.diag(np.full(len(memory), np.inf))
        assert (apart > memory.duplicate).all()
    assert stamps(FrameMemory(folder, adaptive_bundle, most=3)) == stamps(memory)


def test_the_learner_offers_what_is_no_fault(
    tmp_path: Path, adaptive_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FrameMemory(tmp_path / "frames", adaptive_bundle)
    learner = Learner(adaptive_bundle, mode="off", threshold=1.0, frames=memory)
    perception = Perception(adaptive_bundle)
    rng = np.random.default_rng(0)
    for stamp in range(20):
        image = rng.integers(0, 60 + 9 * stamp, (48, 64, 3), np.uint8)
        image = np.zeros_like(image) if stamp == 9 else image  # a black frame
        frame = Frame(image, stamp, "camera")
        learner.observe(frame, perception(frame))
    assert stamps(memory) == [4, 14, 19]
    assert learner.counters["kept frames"] == 3

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    for stamp in range(20, 30):
        image = rng.integers(0, 20 * (stamp - 19), (48, 64, 3), np.uint8)
        frame = Frame(image, stamp, "camera")
        learner.observe(frame, perception(frame))
    assert learner.counters["frames not kept"] >= 1 and len(memory) == 3


def test_real_day_and_dusk_both_stay(camvid: Path, tmp_path: Path, adaptive_bundle: Bundle) -> None:
    """200 frames of a drive, then 62 of another at dusk: of 12 kept, several are of dusk."""
    train = load_dataset(f"{camvid}:train")
    day = [i for i, s in enumerate(train.samples) if s.stem.startswith("0006R0")]
    dusk = [i for i, s in enumerate(train.samples) if s.stem.startswith("0001TP")]
    memory = FrameMemory(tmp_path / "frames", adaptive_bundle, most=12)
    perception = Perception(adaptive_bundle)
    for index in [*day[:60], *dusk[::4]]:
        frame = Frame(train.read(index).image, index, "camera")
        memory.offer(frame, perception(frame))
    at_dusk = sum(stamp in dusk for stamp in stamps(memory))
    assert len(memory) == 12 and 3 <= at_dusk <= 9
