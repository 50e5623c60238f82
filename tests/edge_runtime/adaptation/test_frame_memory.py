"""Frames kept for later: different from each other, bounded, whole after any crash."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.adaptation.frame_memory import FrameMemory, StoreError
from edge_runtime.adaptation.learner import Learner
from edge_runtime.bundle import Bundle
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import InputError
from edge_runtime.frames import Detections, Frame, Result, Segmentation
from edge_runtime.perception import Perception
from edge_runtime.prediction import open_frames


def seen(value: float, shares: tuple[int, ...] = (1, 1, 1), stamp: int = 0) -> tuple[Frame, Result]:
    """A frame whose statistics are `value`, with so many columns of each class."""
    rng = np.random.default_rng(stamp)
    image = rng.integers(0, 256, (24, 24, 3), np.uint8)
    mask = np.repeat(np.arange(len(shares)), np.multiply(shares, 4))[None].repeat(8, 0)
    statistics = np.array([value] * 3 + [1.0] * 3, np.float32)
    segmentation = Segmentation(mask.astype(np.uint8))
    return Frame(image, stamp, "camera"), Result(stamp, "camera", None, segmentation, statistics)


@pytest.fixture
def memory(tmp_path: Path, adaptive_bundle: Bundle) -> FrameMemory:
    return FrameMemory(tmp_path / "frames", adaptive_bundle, most=4, quality=None)


def stamps(memory: FrameMemory) -> list[int]:
    return [frame.stamp_ns for frame in memory.frames]


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


def filled(memory: FrameMemory) -> None:
    for stamp in (1, 2, 3):
        memory.offer(*seen(float(stamp), stamp=stamp))


def reopened(memory: FrameMemory, bundle: Bundle) -> FrameMemory:
    return FrameMemory(memory.folder, bundle, most=4, quality=None)


@pytest.mark.parametrize("spoil", ["cut", "other", "gone", "link", "huge", "folder"])
def test_an_image_that_was_touched_is_left_out(
    memory: FrameMemory, adaptive_bundle: Bundle, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(memory)
    kept = memory.frames[1]
    path = memory.path(kept)
    data = path.read_bytes()
    path.unlink()
    spoiling: dict[str, Callable[[], object]] = {
        "cut": lambda: path.write_bytes(data[:-20]),
        "other": lambda: path.write_bytes(data[:-1] + b"x"),
        "gone": lambda: None,
        "link": lambda: path.symlink_to("/dev/zero"),
        "huge": lambda: path.write_bytes(data + bytes(1 << 20)),
        "folder": lambda: path.mkdir(),
    }
    spoiling[spoil]()
    with pytest.raises(InputError, match=kept.name):
        memory.read(kept)
    with caplog.at_level(logging.WARNING):
        again = reopened(memory, adaptive_bundle)
    assert stamps(again) == [1, 3] and kept.name in caplog.text
    assert again.offer(*seen(9, stamp=4)).kept
    assert stamps(reopened(memory, adaptive_bundle)) == [1, 3, 4]


def changed(frame: bool = True, **fields: object) -> Callable[[dict], object]:
    def change(content: dict) -> object:
        if not frame:
            return {**content, **fields}
        return {**content, "frames": [{**content["frames"][0], **fields}]}

    return change


HOSTILE: dict[str, Callable[[dict], object]] = {
    "a path that leaves the folder": changed(name="../../../etc/passwd"),
    "an absolute path": changed(name="/etc/passwd"),
    "a name with a line break": changed(name="000000001.png\n"),
    "no next number": changed(False, next_number=0),
    "the same file twice": lambda content: {**content, "frames": content["frames"][:1] * 2},
    "no size": changed(size=0),
    "an impossible shape": changed(shape=[1 << 20, 1 << 20]),
    "text for numbers": changed(signature=["1.0"] * 6),
    "values that are not finite": changed(signature=[float("nan")] * 6),
    "an unknown key": changed(code="x"),
    "no object": lambda content: "frames",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_indices_are_set_aside(
    memory: FrameMemory, adaptive_bundle: Bundle, name: str
) -> None:
    filled(memory)
    path = memory._files.path(3)
    raw = json.dumps(HOSTILE[name](json.loads(path.read_bytes().partition(b"\n")[2]))).encode()
    head = f"FIELDSIGHT-FRAMES-1 {hashlib.sha256(raw).hexdigest()}\n".encode()
    path.write_bytes(head + raw)
    again = reopened(memory, adaptive_bundle)
    assert stamps(again) == [1, 2]
    assert path.with_suffix(".rejected").exists()


def test_images_without_an_index_are_put_aside_not_deleted(
    memory: FrameMemory, adaptive_bundle: Bundle
) -> None:
    filled(memory)
    for index in memory.folder.glob("frames-*"):
        index.write_bytes(b"rubbish")
    again = reopened(memory, adaptive_bundle)
    assert len(again) == 0
    aside = list(memory.folder.glob("without-index-*"))
    assert len(aside) == 1 and len(list(aside[0].iterdir())) == 3
    assert again.offer(*seen(1, stamp=7)).kept
    assert stamps(reopened(memory, adaptive_bundle)) == [7]


def test_reading_beside_a_writer_removes_nothing(
    memory: FrameMemory, adaptive_bundle: Bundle
) -> None:
    filled(memory)
    half_kept = memory.folder / "000000004.png"
    half_kept.write_bytes(b"image whose index is about to be written")
    assert len(reopened(memory, adaptive_bundle)) == 3
    assert half_kept.exists()


def test_two_processes_see_each_others_frames(memory: FrameMemory, adaptive_bundle: Bundle) -> None:
    other = reopened(memory, adaptive_bundle)
    filled(memory)
    assert "nearly the same" in other.offer(*seen(1.0, stamp=8)).reason
    assert other.offer(*seen(9.0, stamp=9)).kept
    memory.offer(*seen(2.0))
    assert stamps(memory) == [1, 2, 3, 9]


def test_frames_outlive_the_network_that_saw_them(
    memory: FrameMemory, adaptive_bundle: Bundle
) -> None:
    """Another trunk with other channels and classes: the frames stay, until better ones come."""
    filled(memory)
    index = memory._files.newest()
    assert index is not None
    older = [f.model_copy(update={"signature": [0.0] * 8, "shares": [1.0]}) for f in memory.frames]
    memory._replace(older, memory._apart)
    again = reopened(memory, adaptive_bundle)
    assert stamps(again) == [1, 2, 3]
    offer = again.offer(*seen(1.0, stamp=7))
    assert offer.kept and offer.novelty == 2.0
    again.offer(*seen(5.0, stamp=8))
    assert len(again) == 4


def test_the_folder_is_a_folder_of_images(memory: FrameMemory) -> None:
    filled(memory)
    (memory.folder / "holiday.jpg").write_bytes(b"somebody else's")
    memory.offer(*seen(9, stamp=9))
    (memory.folder / "holiday.jpg").unlink()
    with open_frames(str(memory.folder)) as source:
        images = [frame.image for frame in source]
    assert len(images) == 4
    assert (images[0] == memory.read(memory.frames[0])).all()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_loses_nothing(
    memory: FrameMemory, adaptive_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Full at the image, and full at the index."""
    filled(memory)
    calls, replace = [0], os.replace

    def full(*args: str) -> None:
        calls[0] += 1
        if calls[0] >= failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="No space left"):
            memory.offer(*seen(9, stamp=9))
    assert stamps(memory) == [1, 2, 3] == stamps(reopened(memory, adaptive_bundle))
    assert memory.offer(*seen(9, stamp=9)).kept
    assert len(list(memory.folder.glob("0*"))) == 4


def test_a_folder_that_cannot_be_made(tmp_path: Path, adaptive_bundle: Bundle) -> None:
    (tmp_path / "file").write_text("in the way")
    memory = FrameMemory(tmp_path / "file" / "frames", adaptive_bundle)
    with pytest.raises(StoreError, match="Not a directory"):
        memory.offer(*seen(1))


def test_kills_leave_a_whole_memory(writers, tmp_path: Path, adaptive_bundle: Bundle) -> None:
    rng = random.Random(5)
    for _ in range(10):
        pid = writers.start("frames", tmp_path / "state", adaptive_bundle.path)
        first = int(writers.line())
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, 9)
        said = [first, *map(int, writers.reap())]
        memory = FrameMemory(tmp_path / "state", adaptive_bundle, most=5)
        # the writer clears a full memory, so that the one being written may be the only one
        assert not stamps(memory) or max(stamps(memory)) in (said[-1], said[-1] + 1)
        for kept in memory.frames:
            image = memory.read(kept)
            expected = np.random.default_rng(kept.stamp_ns).integers(0, 256, (48, 64, 3), np.uint8)
            assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.5
    assert not list(tmp_path.rglob("*.rejected"))
    assert len(list(memory.folder.glob("0*"))) <= 5 + 2  # a kill leaves what it interrupted


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
