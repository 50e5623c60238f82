"""The frame memory on disk: what is believed, and what a disk or a kill may do to it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kept_frames import filled, reopened, seen, stamps

from edge_runtime.adaptation.frame_memory import FrameMemory, StoreError
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError


@pytest.fixture
def memory(tmp_path: Path, adaptive_bundle: Bundle) -> FrameMemory:
    return FrameMemory(tmp_path / "frames", adaptive_bundle, most=4, quality=None)


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
