"""The chessboard, named by its inner corners: all of it must be in the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.camera.boards import (
    Board,
    Corners,
    board_kind,
    parse_grid,
    parse_length,
    refine,
)

_LEAST = 3  # inner corners each way that the detector takes
_LEAST_SURE = 4  # of an unknown board: noise has some of three
_SEARCH_PX = 1600
_SECTORS = cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_ACCURACY
_THOROUGH = _SECTORS | cv2.CALIB_CB_EXHAUSTIVE
_CLASSIC = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_FAST_CHECK


@dataclass(frozen=True, slots=True)
class Chessboard:
    """A plain chessboard.

    Attributes:
        columns: Inner corners of a row.
        rows: Inner corners of a column.
        square: Side of a square in metres.
    """

    columns: int
    rows: int
    square: float

    @property
    def spec(self) -> str:
        """As one types it."""
        return f"chessboard:{self.columns}x{self.rows}:{self.square:g}"

    def find(self, grey: np.ndarray) -> Corners | None:
        """All inner corners, row by row, or None.

        The sector-based detector (Duda and Frese, "Accurate Detection and Localization of
        Checkerboard Corners for Calibration", BMVC 2018) comes first; where it finds nothing, the
        classic one is asked. Both search large pictures shrunk; what they find is refined in full.
        """
        size, small = (self.columns, self.rows), _small(grey)
        found, pixels = cv2.findChessboardCornersSB(small, size, flags=_SECTORS)
        if not found:
            found, pixels = cv2.findChessboardCorners(small, size, flags=_CLASSIC)
        if not found or pixels is None or len(pixels) != self.columns * self.rows:
            return None
        scale = np.array(grey.shape[::-1]) / small.shape[::-1]
        pixels = ((pixels.reshape(-1, 2) + 0.5) * scale - 0.5).astype(np.float32)
        cells = np.indices((self.rows, self.columns))[::-1].reshape(2, -1).T
        return refine(grey, Corners(cells, pixels))

    def explain(self, greys: Sequence[np.ndarray]) -> str:
        """Looks for a chessboard of any size."""
        sizes = Counter(size for grey in greys if (size := _any_size(grey)))
        if not sizes:
            return (
                f"no chessboard of another size either (tried also {self.rows}x{self.columns} and "
                "whatever the detector takes for one); is all of it in the picture, sharp, flat, "
                "with a white margin?"
            )
        (columns, rows), count = sizes.most_common(1)[0]
        counted = (
            "; count inner corners, not squares"
            if {columns + 1, rows + 1} == {self.columns, self.rows}
            else ""
        )
        return (
            f"but {count} of {len(greys)} looked at show one of {columns}x{rows} inner corners: "
            f"did you mean --board chessboard:{columns}x{rows}:{self.square:g}{counted}?"
        )


def _small(grey: np.ndarray) -> np.ndarray:
    """The picture, shrunk to at most `_SEARCH_PX`: the search takes seconds at 12 megapixels."""
    scale = _SEARCH_PX / max(grey.shape)
    if scale >= 1:
        return grey
    size = round(grey.shape[1] * scale), round(grey.shape[0] * scale)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def _any_size(grey: np.ndarray) -> tuple[int, int] | None:
    """Inner corners (more, fewer) each way of the largest chessboard in a picture."""
    flags = _THOROUGH | cv2.CALIB_CB_LARGER
    found, _, meta = cv2.findChessboardCornersSBWithMeta(
        _small(grey), (_LEAST_SURE, _LEAST_SURE), flags
    )
    if not found or meta is None:
        return None
    rows, columns = sorted(meta.shape[:2])
    return columns, rows


@board_kind(
    "chessboard",
    "chessboard:COLSxROWS:SQUARE, inner corners and metres, such as chessboard:9x6:0.025",
)
def _parse(text: str) -> Board:
    words = text.split(":")
    if len(words) != 2:
        raise ValueError(f"'{text}' has {len(words)} parts, not 2")
    columns, rows = parse_grid(words[0], _LEAST)
    return Chessboard(columns, rows, parse_length(words[1], "square"))
