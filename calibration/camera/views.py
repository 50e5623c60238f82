"""Views: pictures in which a board was found, and what became of the others."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from calibration.camera.boards import Board, Corners, board_points
from calibration.camera.sharpness import edge_width
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame
from edge_runtime.images import IMAGE_SUFFIXES
from edge_runtime.sources import VIDEO_SUFFIXES, FrameSource, VideoSource, open_source

MOST_VIDEO_FRAMES = 200  # of a video that are searched: the sharpest of as many stretches
_SAMPLES = 4  # pictures without a board that are kept to say what they show


@dataclass(frozen=True, slots=True)
class View:
    """A board in one picture.

    Attributes:
        name: Of the picture.
        cells: int [N, 2], column and row of each corner found.
        points: float32 [N, 3], the corners on the board in metres.
        pixels: float32 [N, 2], the corners in the picture, from the first pixel's centre.
        blur: Width in pixels over which the squares' edges rise, the wider direction.
        picture: The picture as JPEG.
    """

    name: str
    cells: np.ndarray
    points: np.ndarray
    pixels: np.ndarray
    blur: float
    picture: bytes


@dataclass(frozen=True, slots=True)
class Rejection:
    """A picture that was left out, and why.

    Attributes:
        name: Of the picture.
        kind: "unreadable", "no_board", "blurred", "duplicate", "surplus", "ill_posed", "outlier".
        reason: In words.
    """

    name: str
    kind: str
    reason: str


@dataclass
class Gathered:
    """What was found in all pictures.

    Attributes:
        views: Pictures with a board.
        rejected: Those that cannot be read or show no board.
        size: (height, width) of every picture.
        samples: Some pictures without a board, uint8 [H, W].
    """

    views: list[View] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    samples: list[np.ndarray] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        """How many pictures could be read."""
        unreadable = sum(rejection.kind == "unreadable" for rejection in self.rejected)
        return len(self.views) + len(self.rejected) - unreadable


def gather(
    specs: Sequence[str],
    board: Board,
    advance: Callable[[int, int | None], None] = lambda done, of: None,
) -> Gathered:
    """Find the board in every picture.

    Args:
        specs: Images, folders, patterns and videos.
        board: What to look for.
        advance: Called with how many of how many pictures were searched; None with videos.

    Raises:
        InputError: There is no picture, the pictures differ in size, or none shows the board.
    """
    sources = expand(specs)
    result = Gathered()
    first, done = "", 0
    videos = any(Path(source).suffix.lower() in VIDEO_SUFFIXES for source in sources)
    for source in sources:
        for name, image in _pictures(source, result.rejected):
            name = _unused(name, result)
            if first and image.shape[:2] != result.size:
                raise InputError(
                    f"{name} is {image.shape[1]}x{image.shape[0]} pixels, {first} is "
                    f"{result.size[1]}x{result.size[0]}; calibrate one camera at one resolution"
                )
            first, result.size = first or name, (image.shape[0], image.shape[1])
            _search(name, image, board, result)
            done += 1
            advance(done, None if videos else len(sources))
    _require_boards(result, board)
    return result


def expand(specs: Sequence[str]) -> list[str]:
    """Patterns replaced by what matches them and folders by their images, by name.

    Raises:
        InputError: A name or pattern matches nothing.
    """
    found: list[str] = []
    for spec in specs:
        if spec.startswith("camera:"):
            raise InputError(f"'{spec}': calibrate from files; record the camera first")
        matches = [spec] if Path(spec).exists() else sorted(glob.glob(spec, recursive=True))
        if not matches:
            raise InputError(
                f"'{spec}' matches nothing; expected images, a folder of images, a pattern such as "
                "'calib/*.png', or a video"
            )
        for match in matches:
            found += _images_in(match) if Path(match).is_dir() else [match]
    return list(dict.fromkeys(found))


def _images_in(folder: str) -> list[str]:
    files = [str(f) for f in sorted(Path(folder).iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise InputError(
            f"{folder}: no images in this folder; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return files


def _pictures(spec: str, rejected: list[Rejection]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and images uint8 [H, W, 3] of one source; what cannot be read is noted."""
    try:
        with open_source(spec) as source:
            for frame in _sharpest(source) if isinstance(source, VideoSource) else source:
                yield frame.frame_id, frame.image
    except InputError as error:
        rejected.append(Rejection(Path(spec).name, "unreadable", str(error)))


def _sharpest(video: FrameSource) -> Iterator[Frame]:
    """The sharpest frame of each of at most `MOST_VIDEO_FRAMES` equal stretches of a video."""
    stretch = max(1, math.ceil((video.length or 3000) / MOST_VIDEO_FRAMES))
    best: tuple[float, Frame] | None = None
    for index, frame in enumerate(video):
        grey = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
        sharp = float(cv2.Laplacian(grey, cv2.CV_32F).var()) if stretch > 1 else 0.0
        if best is None or sharp > best[0]:
            best = sharp, frame
        if index % stretch == stretch - 1:
            yield best[1]
            best = None
    if best is not None:
        yield best[1]


def _search(name: str, image: np.ndarray, board: Board, result: Gathered) -> None:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    corners = board.find(grey)
    if corners is None:
        result.rejected.append(Rejection(name, "no_board", "the board was not found"))
        if len(result.samples) < _SAMPLES:
            result.samples.append(grey)
        return
    result.views.append(make_view(name, image, grey, corners, board.square))


def make_view(
    name: str, image: np.ndarray, grey: np.ndarray, corners: Corners, square: float
) -> View:
    """The view of a board whose corners were found.

    Args:
        name: Of the picture.
        image: uint8 [H, W, 3] RGB.
        grey: uint8 [H, W], the same.
        corners: What was found.
        square: Side of a square in metres.
    """
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    points = board_points(corners.cells, square)
    blur = edge_width(grey, corners)
    return View(name, corners.cells, points, corners.pixels, blur, coded)


def _unused(name: str, result: Gathered) -> str:
    """The name, numbered if a picture of another folder has it already."""
    taken = {view.name for view in result.views} | {entry.name for entry in result.rejected}
    names = (name if i == 1 else f"{name} ({i})" for i in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _require_boards(result: Gathered, board: Board) -> None:
    if not result.pictures:
        unreadable = len(result.rejected)
        reason = result.rejected[0].reason if result.rejected else "there are none"
        raise InputError(f"no image could be read ({unreadable} skipped; the first: {reason})")
    if not result.views:
        raise InputError(
            f"{board.spec} was found in none of {result.pictures} images, "
            f"{board.explain(result.samples)}"
        )
