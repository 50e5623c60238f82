"""Frames to learn from later, at the dock: few, and as different from each other as can be.

What a frame is like is told by the statistics at the first adapter point, which no adapter changes,
and by the classes found in it. The folder holds `NUMBER.jpg` and a sealed index, and can be read as
a folder of images. An image is written before the index that names it and removed after the index
that no longer does, so a crash leaves at most an image too many, which the next frame kept removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydantic import Field, FiniteFloat

from edge_runtime.adaptation.divergence import CAP, divergence
from edge_runtime.adaptation.evidence import class_shares
from edge_runtime.adaptation.sealed import SealedFolder, StoreError, Unusable, read_plain
from edge_runtime.adaptation.worth import grown, least_worthy
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_bytes
from edge_runtime.frames import Frame, Result
from edge_runtime.images import read_image
from edge_runtime.manifest import Spec

log = logging.getLogger(__name__)

__all__ = ["FrameMemory", "KeptFrame", "Offer", "StoreError"]
_NAME = r"\d{9}\.(jpg|png)"
_OURS = re.compile(rf"{_NAME}|\.{_NAME}\..*\.tmp")
_DIGITS = 6  # of what is written of a float
_MOST_ID = 256
_VERSIONS = 2
_MOST_SIDE = 1 << 14


class KeptFrame(Spec):
    """A frame that was kept.

    Attributes:
        name: File within the folder.
        sha256: Of the file.
        size: Of the file, in bytes.
        shape: Height and width in pixels.
        stamp_ns: Time of exposure, in the clock of the source.
        frame_id: Of the camera.
        signature: Channel means and variances at the first adapter point.
        shares: Share of each class in what was found.
    """

    name: str = Field(pattern=f"^{_NAME}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(gt=0)
    shape: tuple[int, int]
    stamp_ns: int
    frame_id: str = Field(max_length=_MOST_ID)
    signature: list[FiniteFloat]
    shares: list[FiniteFloat]


class _Index(Spec):
    """What the index says."""

    next_number: int = Field(ge=1, lt=10**9)
    frames: list[KeptFrame] = Field(max_length=100_000)


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of an offered frame: kept or not, why, and how novel it was."""

    kept: bool
    reason: str
    novelty: float


class FrameMemory:
    """A bounded, diverse memory of frames on disk.

    When it is full, the frame goes that is worth least; see `worth`. Several processes may open one
    folder, such as one that learns from what another collects; they should take turns at writing.
    Frames outlive the bundle: they are raw images, and the next network learns from them as well.

    Args:
        folder: Made when a frame is first kept.
        bundle: Whose network sees the frames.
        most: Frames at most.
        most_bytes: Bytes of images at most.
        duplicate: A frame at most so far from a kept one is refused; see `divergence`.
        quality: Of JPEG, 1 to 100; None writes PNG, without loss.
    """

    def __init__(
        self,
        folder: Path | str,
        bundle: Bundle,
        most: int = 200,
        most_bytes: int = 128 << 20,
        duplicate: float = 0.005,
        quality: int | None = 95,
    ) -> None:
        if most < 1 or most_bytes < 1 or duplicate < 0 or not 1 <= (quality or 1) <= 100:
            raise InputError(
                f"most {most} and most_bytes {most_bytes} must be at least 1, duplicate "
                f"{duplicate} at least 0, quality {quality} 1 to 100"
            )
        manifest = bundle.manifest
        self.folder = Path(folder)
        self.most, self.most_bytes = most, most_bytes
        self.duplicate, self.quality = duplicate, quality
        self._half = manifest.student.adapter[0].channels
        self._classes = {str(task): len(names) for task, names in manifest.classes.items()}
        self._files = SealedFolder(self.folder, "FRAMES", _Index, _VERSIONS, _check)
        self._frames: list[KeptFrame] = []
        self._apart = np.empty((0, 0))
        self._next, self._version = 1, 0
        self._load()

    @property
    def frames(self) -> list[KeptFrame]:
        """The kept frames, oldest first."""
        return list(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        return sum(frame.size for frame in self._frames)

    def path(self, frame: KeptFrame) -> Path:
        """Where a frame's image lies."""
        return self.folder / frame.name

    def read(self, frame: KeptFrame) -> np.ndarray:
        """A kept frame's image, uint8 [H, W, 3] RGB.

        Raises:
            InputError: The file is gone, altered or no picture.
        """
        path = self.path(frame)
        if why := self._wrong(frame):
            raise InputError(f"{path}: {why}; forget the frame by opening the memory again")
        image = read_image(path)
        if image.shape[:2] != frame.shape:
            raise InputError(f"{path}: {image.shape[:2]} pixels, expected {frame.shape}")
        return image

    def offer(self, frame: Frame, result: Result) -> Offer:
        """Keep a frame if it is worth more than what it would replace.

        Costs little where it is refused; a kept one is encoded and written to disk, which takes
        some milliseconds: offer frames from a thread that has them.

        Args:
            frame: Without fault.
            result: What perception made of it; without statistics it is refused.

        Raises:
            StoreError: It cannot be written; what was kept before is untouched.
        """
        if result.statistics is None or not np.isfinite(result.statistics).all():
            return Offer(False, "no statistics to tell it by", 0.0)
        if self._files.latest() != self._version:
            self._load()
        signature = np.asarray(result.statistics[: 2 * self._half], np.float64)
        shares = self._shares(result)
        apart = self._distances(signature)
        novelty = float(apart.min(initial=CAP))
        if self._frames and novelty <= self.duplicate:
            return Offer(False, "nearly the same as a kept one", novelty)
        seen = [*(frame.shares for frame in self._frames), shares.tolist()]
        wider = grown(self._apart, apart)
        if len(seen) > self.most and least_worthy(wider, seen) == len(seen) - 1:
            return Offer(False, "worth less than those kept", novelty)
        data = _encoded(frame.image, self.quality)
        if len(data) > self.most_bytes:
            return Offer(False, "larger than the whole memory may be", novelty)
        new = KeptFrame(
            name=f"{self._next:09d}.{'png' if self.quality is None else 'jpg'}",
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            shape=(frame.image.shape[0], frame.image.shape[1]),
            stamp_ns=frame.stamp_ns,
            frame_id=frame.frame_id[:_MOST_ID],
            signature=_short(signature),
            shares=_short(shares),
        )
        frames, wider = self._fitted([*self._frames, new], wider)
        if frames[-1] is not new:
            return Offer(False, "worth less than those kept", novelty)
        self._write(self.folder / new.name, data)
        self._replace(frames, wider)
        return Offer(True, "new", novelty)

    def clear(self) -> None:
        """Forget all frames, such as after they were learnt from.

        Raises:
            StoreError: The folder cannot be written.
        """
        if self._frames:
            self._replace([], np.empty((0, 0)))

    def _shares(self, result: Result) -> np.ndarray:
        """Share of each class in what was found, float64: pixels where there is a mask."""
        if result.segmentation is not None:
            return class_shares(result.segmentation.mask, self._classes["segmentation"])
        if result.detections is None:
            return np.zeros(0)
        count = self._classes["detection"]
        found = np.bincount(result.detections.labels, minlength=count)[:count]
        return found / max(found.sum(), 1)

    def _distances(self, signature: np.ndarray) -> np.ndarray:
        """Distance of a signature from each kept frame, float64 [N].

        Frames that another network saw are as far as can be if its channels are other ones; if
        not, as after a consolidation, they are compared.
        """
        half, found = len(signature) // 2, np.full(len(self._frames), CAP)
        alike = [i for i, f in enumerate(self._frames) if len(f.signature) == len(signature)]
        if alike:
            others = np.array([self._frames[i].signature for i in alike])
            a, b = signature[:half], signature[half:]
            found[alike] = divergence(a, b, others[:, :half], others[:, half:]).mean(axis=1)
        return found

    def _fitted(
        self, frames: list[KeptFrame], apart: np.ndarray
    ) -> tuple[list[KeptFrame], np.ndarray]:
        """Frames and their distances without the least worthy, so that the rest fits."""
        while len(frames) > self.most or sum(f.size for f in frames) > self.most_bytes:
            worst = least_worthy(apart, [frame.shares for frame in frames])
            frames = frames[:worst] + frames[worst + 1 :]
            apart = np.delete(np.delete(apart, worst, 0), worst, 1)
        return frames, apart

    def _write(self, path: Path, data: bytes) -> None:
        try:
            atomic_write_bytes(path, data)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: a frame cannot be kept ({error.strerror}); make room or name a "
                "folder that can be written"
            ) from None

    def _replace(self, frames: list[KeptFrame], apart: np.ndarray) -> None:
        """Make these the kept frames: index first, then remove what it no longer names."""
        index = _Index(next_number=self._next + 1, frames=frames)
        self._version = self._files.write(index, after=self._version)
        self._frames, self._apart, self._next = frames, apart, self._next + 1
        self._sweep()

    def _sweep(self) -> None:
        """Remove images that the index does not name: replaced ones, and those of a crash."""
        named = {frame.name for frame in self._frames}
        for path in self.folder.glob("*"):
            if _OURS.fullmatch(path.name) and path.name not in named:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _load(self) -> None:
        """Take up what lies in the folder, leaving out entries without their image."""
        self._frames, self._apart, self._next = [], np.empty((0, 0)), 1
        self._version = self._files.latest()
        found = self._files.newest()
        if found is None:
            self._rescue()
            return
        self._next = found[1].next_number
        for frame in found[1].frames[-self.most :]:
            if why := self._wrong(frame):
                log.warning("%s is not used: %s", self.path(frame), why)
                continue
            apart = self._distances(np.array(frame.signature))
            self._apart = grown(self._apart, apart)
            self._frames.append(frame)

    def _rescue(self) -> None:
        """Images without any index are put where nothing removes them: people may want them."""
        if not self._version:
            return
        aside = self.folder / f"without-index-{self._version:09d}"
        with contextlib.suppress(OSError):
            aside.mkdir(exist_ok=True)
            for path in self.folder.glob("*"):
                if _OURS.fullmatch(path.name):
                    path.rename(aside / path.name)
            log.warning(
                "%s: no index can be used; its images were moved to %s", aside.parent, aside
            )

    def _wrong(self, frame: KeptFrame) -> str | None:
        """Why a kept frame's image is not to be used, or None."""
        try:
            data = read_plain(self.path(frame), most=frame.size)
        except Unusable as why:
            return str(why)
        if hashlib.sha256(data).hexdigest() != frame.sha256:
            return "it was cut off or altered: its checksum does not fit"
        return None


def _check(index: _Index) -> None:
    if len({frame.name for frame in index.frames}) < len(index.frames):
        raise Unusable("two frames share a file")
    for frame in index.frames:
        if not all(0 < side <= _MOST_SIDE for side in frame.shape):
            raise Unusable(f"{frame.name}: {frame.shape} pixels are no picture's size")


def _encoded(image: np.ndarray, quality: int | None) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if quality is None:
        return cv2.imencode(".png", bgr)[1].tobytes()
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
