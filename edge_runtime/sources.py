"""Frames from an image, a folder of images, a video file or a camera."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2

from edge_runtime.errors import FieldsightError, InputError
from edge_runtime.frames import Frame
from edge_runtime.images import IMAGE_SUFFIXES, read_image

log = logging.getLogger(__name__)
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
_RETRIES = 5  # reads of a silent camera before it counts as gone
_RETRY_WAIT_S = 0.2


class SourceLost(FieldsightError):
    """A camera stopped giving frames; what was read before is unaffected."""


class FrameSource:
    """An iterator of frames and a context manager. Subclasses implement `_frames`.

    Attributes:
        name: What it reads, for messages and reports.
        length: Number of frames if known beforehand, else None.
        skipped: Frames that could not be read and were left out so far.
    """

    def __init__(self, name: str, length: int | None, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit is {limit}, expected at least 1 frame")
        self.name = name
        self.length = length if limit is None or length is None else min(length, limit)
        if self.length is None:
            self.length = limit
        self.skipped = 0
        self._limit = limit
        self._given = 0
        self._iterator: Iterator[Frame] | None = None

    def _frames(self) -> Iterator[Frame]:
        raise TypeError(f"{type(self).__name__} must say how its frames are read")

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._iterator is None:
            self._iterator = self._frames()
        if self._limit is not None and self._given >= self._limit:
            raise StopIteration
        frame = next(self._iterator)
        self._given += 1
        return frame

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what the source holds open."""


class ImageSource(FrameSource):
    """One image (which must be readable) or a folder's images by name (bad ones are skipped).

    Frame ids are file names without suffix; stamps are the files' modification times.
    """

    def __init__(self, path: Path, limit: int | None) -> None:
        self._strict = path.is_file()
        self._files = [path] if self._strict else _images_in(path)
        if not self._files:
            raise InputError(
                f"{path}: no images in this folder; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        super().__init__(str(path), len(self._files), limit)

    def _frames(self) -> Iterator[Frame]:
        for file in self._files:
            try:
                image = read_image(file)
            except InputError as error:
                if self._strict:
                    raise
                self.skipped += 1
                log.warning("skipped: %s", error)
                continue
            yield Frame(image, file.stat().st_mtime_ns, file.stem)


class VideoSource(FrameSource):
    """A video file. Stamps count from its start by its frame rate; ids are "stem_000000"."""

    def __init__(self, path: Path, limit: int | None, capture: Any = None) -> None:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty; expected a video")
        self._path = path
        self._capture = capture or cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise InputError(f"{path}: cannot be decoded as video; expected e.g. MP4 or AVI")
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(str(path), frames if frames > 0 else None, limit)

    def _frames(self) -> Iterator[Frame]:
        rate = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        index = 0
        while True:
            good, image = self._capture.read()
            if not good:
                break
            stamp = round(index * 1e9 / rate)
            yield Frame(_to_rgb(image), stamp, f"{self._path.stem}_{index:06d}")
            index += 1
        if index == 0:
            raise InputError(f"{self._path}: holds no frame that can be decoded")
        if self.length and self._limit is None and index < self.length:
            log.warning("%s ended after %d of %d frames", self._path, index, self.length)

    def close(self) -> None:
        self._capture.release()


class CameraSource(FrameSource):
    """A camera by index. A silent one is reopened a few times before `SourceLost` is raised.

    Attributes:
        retries: Reads that failed so far.
    """

    def __init__(
        self,
        index: int,
        limit: int | None,
        open_camera: Callable[[int], Any] = cv2.VideoCapture,
        retry_wait_s: float = _RETRY_WAIT_S,
    ) -> None:
        super().__init__(f"camera:{index}", None, limit)
        self._index, self._open, self._wait = index, open_camera, retry_wait_s
        self.retries = 0
        self._capture = open_camera(index)
        if not self._capture.isOpened():
            raise InputError(
                f"camera:{index} cannot be opened; check that it is plugged in, not in use, and "
                "that you may read /dev/video*"
            )

    def _frames(self) -> Iterator[Frame]:
        silent = 0
        while True:
            good, image = self._capture.read()
            if good:
                silent = 0
                yield Frame(_to_rgb(image), time.time_ns(), f"camera_{self._index}")
                continue
            silent += 1
            self.retries += 1
            self.skipped += 1
            if silent > _RETRIES:
                raise SourceLost(
                    f"{self.name} stopped giving frames after {self._given} "
                    f"({_RETRIES} retries); check its cable and start again"
                )
            log.warning("%s gave no frame, retry %d of %d", self.name, silent, _RETRIES)
            time.sleep(self._wait)
            self._capture.release()
            self._capture = self._open(self._index)

    def close(self) -> None:
        self._capture.release()


def open_source(spec: str | os.PathLike[str], limit: int | None = None) -> FrameSource:
    """Open frames for reading; use it in a `with` statement.

    Args:
        spec: A folder of images, an image, a video file, or "camera:INDEX".
        limit: Stop after this many frames.

    Raises:
        InputError: There is nothing to read there.
    """
    text = os.fspath(spec)
    if text.startswith("camera:"):
        index = text.removeprefix("camera:")
        if not index.isdecimal():
            raise InputError(f"'{text}': expected 'camera:' and a number, such as camera:0")
        return CameraSource(int(index), limit)
    path = Path(text)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; expected an image, a folder of images, a video or camera:0"
        )
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoSource(path, limit)
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: '{path.suffix}' is neither a known image nor a video format")
    return ImageSource(path, limit)


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES
    )


def _to_rgb(image: Any) -> Any:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
