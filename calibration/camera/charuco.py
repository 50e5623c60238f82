"""The ChArUco board: a chessboard with markers in its white squares, which may be cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from calibration.camera.boards import (
    LEAST_CORNERS,
    Board,
    Corners,
    board_kind,
    parse_grid,
    parse_length,
    refine,
)

_PREFIX = "DICT_"


@dataclass(frozen=True)
class Charuco:
    """A ChArUco board.

    Attributes:
        columns: Squares of a row.
        rows: Squares of a column.
        square: Side of a square in metres.
        marker: Side of a marker in metres.
        dictionary: Of its markers, as OpenCV names it, without "DICT_".
        legacy: Drawn as OpenCV did before 4.6, with a marker in the first square of boards whose
            number of rows is even.
    """

    columns: int
    rows: int
    square: float
    marker: float
    dictionary: str
    legacy: bool = False
    _detector: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        markers = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, _PREFIX + self.dictionary))
        board = cv2.aruco.CharucoBoard((self.columns, self.rows), self.square, self.marker, markers)
        board.setLegacyPattern(self.legacy)
        object.__setattr__(self, "_detector", cv2.aruco.CharucoDetector(board))

    @property
    def spec(self) -> str:
        """As one types it."""
        sizes = f"{self.columns}x{self.rows}:{self.square:g}:{self.marker:g}"
        return f"charuco:{sizes}:{self.dictionary}{':legacy' if self.legacy else ''}"

    def find(self, grey: np.ndarray) -> Corners | None:
        """Those inner corners that the markers around them identify; None if too few."""
        pixels, ids, _, _ = self._detector.detectBoard(grey)
        if ids is None or len(ids) < LEAST_CORNERS:
            return None
        rows, columns = np.divmod(ids.reshape(-1), self.columns - 1)
        if len(set(rows.tolist())) < 2 or len(set(columns.tolist())) < 2:
            return None  # corners in one line fix no pose
        found = Corners(np.column_stack([columns, rows]), pixels.reshape(-1, 2).astype(np.float32))
        margin = (1 - self.marker / self.square) / 2  # white between a corner and its markers
        return refine(grey, found, within=min(margin, 0.35))

    def explain(self, greys: Sequence[np.ndarray]) -> str:
        """Looks for the board turned, in the older layout, and for markers of any dictionary."""
        turned = self._like(columns=self.rows, rows=self.columns)
        for other in (self._like(legacy=not self.legacy), turned):
            count = sum(other.find(grey) is not None for grey in greys)
            if count:
                return (
                    f"but {count} of {len(greys)} looked at fit --board {other.spec}: did you mean "
                    "that?"
                )
        largest = {_family(name): name for name in _names()}
        seen = Counter(
            {key: sum(_markers(grey, name) for grey in greys) for key, name in largest.items()}
        )
        family, count = seen.most_common(1)[0]
        if count < LEAST_CORNERS:
            return "and no markers of any known dictionary; is the board in the pictures, sharp?"
        if family == _family(self.dictionary):
            return (
                f"though {count} of its markers: are there {self.columns}x{self.rows} squares "
                "(squares, not inner corners)?"
            )
        return (
            f"but {count} markers of {largest[family]} or a part of it; the board names "
            f"{self.dictionary}"
        )

    def _like(self, **changes: Any) -> Charuco:
        kept = ("columns", "rows", "square", "marker", "dictionary", "legacy")
        return Charuco(**{name: getattr(self, name) for name in kept} | changes)


def _names() -> list[str]:
    """Dictionaries that this OpenCV knows, each once, of each family the smallest first."""
    known: dict[int, str] = {}
    for name in sorted(vars(cv2.aruco)):
        if name.startswith(_PREFIX):
            known.setdefault(getattr(cv2.aruco, name), name.removeprefix(_PREFIX))
    return [known[number] for number in sorted(known)]


def _family(name: str) -> str:
    """What dictionaries share of which the smaller is the larger one's first part."""
    return name.partition("_")[0] if name[0].isdigit() else name


def _markers(grey: np.ndarray, name: str) -> int:
    """How many markers of a dictionary a picture shows."""
    markers = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, _PREFIX + name))
    _, ids, _ = cv2.aruco.ArucoDetector(markers).detectMarkers(grey)
    return 0 if ids is None else len(ids)


@board_kind(
    "charuco",
    "charuco:COLSxROWS:SQUARE:MARKER:DICT, squares and metres, such as "
    "charuco:8x6:0.03:0.022:4X4_50 (and :legacy where OpenCV before 4.6 drew it)",
)
def _parse(text: str) -> Board:
    words = text.split(":")
    legacy = words[4:] == ["legacy"]
    if len(words) != 4 + legacy:
        raise ValueError(f"'{text}' has {len(words)} parts, not 4 after the kind")
    columns, rows = parse_grid(words[0], 3)
    square, marker = parse_length(words[1], "square"), parse_length(words[2], "marker")
    if marker >= square:
        raise ValueError(f"marker {marker:g} m is not smaller than square {square:g} m")
    known = {name.upper(): name for name in _names()}
    name = known.get(words[3].upper().removeprefix(_PREFIX), "")
    if not name:
        raise ValueError(f"dictionary '{words[3]}' is none of {', '.join(_names())}")
    size = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, _PREFIX + name)).bytesList.shape[0]
    if columns * rows // 2 > size:
        raise ValueError(
            f"{columns}x{rows} squares need {columns * rows // 2} markers, {name} has {size}"
        )
    return Charuco(columns, rows, square, marker, name, legacy)
