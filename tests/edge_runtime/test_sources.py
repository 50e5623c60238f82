from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_runtime.errors import InputError
from edge_runtime.sources import CameraSource, SourceLost, open_source

RED = np.full((24, 32, 3), (0, 0, 250), np.uint8)  # OpenCV's order: BGR


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("b", "a", "c"):
        cv2.imwrite(str(photos / f"{name}.png"), RED)
    (photos / "notes.txt").write_text("not an image")
    return photos


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write video")
    for _ in range(5):
        writer.write(RED)
    writer.release()
    return path


class FakeCamera:
    """Gives `script` read by read (an image, or None for a failed read), shared by reopenings."""

    script: list[Any] = []
    opened = 0

    def __init__(self, index: int) -> None:
        type(self).opened += 1

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def read(self) -> tuple[bool, Any]:
        image = self.script.pop(0) if self.script else None
        return image is not None, image

    def release(self) -> None:
        pass


def test_a_folder_gives_its_images_by_name(folder: Path) -> None:
    with open_source(str(folder)) as source:
        frames = list(source)
    assert source.length == 3 and source.skipped == 0
    assert [frame.frame_id for frame in frames] == ["a", "b", "c"]
    assert frames[0].image[0, 0].tolist() == [250, 0, 0]
    assert frames[0].stamp_ns == (folder / "a.png").stat().st_mtime_ns


@pytest.mark.parametrize("content", [b"", b"no image"], ids=["zero bytes", "garbage"])
def test_a_bad_image_in_a_folder_is_skipped_and_counted(folder: Path, content: bytes) -> None:
    (folder / "b.png").write_bytes(content)
    with open_source(folder) as source:
        assert [frame.frame_id for frame in source] == ["a", "c"]
    assert source.skipped == 1


def test_a_bad_image_asked_for_by_name_is_an_error(folder: Path) -> None:
    file = folder / "a.png"
    file.write_bytes(file.read_bytes()[:40])
    with open_source(file) as source, pytest.raises(InputError, match=r"a\.png"):
        next(source)


def test_a_limit_ends_early(folder: Path, video: Path) -> None:
    for spec in (folder, video):
        with open_source(spec, limit=2) as source:
            assert source.length == 2
            assert len(list(source)) == 2


def test_a_video_ends_with_its_last_frame(video: Path) -> None:
    with open_source(video) as source:
        frames = list(source)
        assert next(source, None) is None
    assert [frame.frame_id for frame in frames] == [f"drive_{i:06d}" for i in range(5)]
    assert [frame.stamp_ns for frame in frames] == [i * 100_000_000 for i in range(5)]
    assert np.abs(frames[0].image[0, 0].astype(int) - [250, 0, 0]).max() < 12


def test_a_truncated_video_gives_what_is_whole(video: Path) -> None:
    data = video.read_bytes()
    video.write_bytes(data[: len(data) * 2 // 3])
    try:
        with open_source(video) as source:
            frames = list(source)
    except InputError as error:
        assert "drive.avi" in str(error)
    else:
        assert 1 <= len(frames) <= 5


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.mp4", b"", "is empty"),
        ("noise.mp4", b"\x00noise" * 50, "cannot be decoded as video"),
        ("sound.ogg", b"x", "neither a known image nor a video"),
    ],
)
def test_files_that_hold_no_frames_are_refused(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        open_source(tmp_path / name)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in this folder"):
        open_source(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "absent")
    with pytest.raises(InputError, match="such as camera:0"):
        open_source("camera:front")
    with pytest.raises(InputError, match="limit is 0"):
        open_source("camera:0", limit=0)


def test_a_camera_that_cannot_be_opened_is_refused() -> None:
    class Absent(FakeCamera):
        def isOpened(self) -> bool:  # noqa: N802
            return False

    with pytest.raises(InputError, match="camera:7 cannot be opened"):
        CameraSource(7, None, Absent)


def test_a_camera_that_stumbles_is_reopened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCamera, "script", [RED, None, None, RED, RED])
    monkeypatch.setattr(FakeCamera, "opened", 0)
    with CameraSource(0, 3, FakeCamera, retry_wait_s=0) as source:
        frames = list(source)
    assert len(frames) == 3
    assert (source.retries, source.skipped, FakeCamera.opened) == (2, 2, 3)
    assert frames[0].stamp_ns <= frames[2].stamp_ns


def test_a_camera_that_vanishes_is_an_error_after_counted_retries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeCamera, "script", [RED])
    with CameraSource(0, None, FakeCamera, retry_wait_s=0) as source:
        next(source)
        with pytest.raises(SourceLost, match=r"camera:0 stopped giving frames after 1 \(5 retries"):
            next(source)
    assert source.retries == 6
