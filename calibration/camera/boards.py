"""Calibration boards: how one is named, and what every kind of board can do.

A kind of board lives in a file of its own and registers itself with `board_kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from edge_runtime.errors import InputError

LEAST_CORNERS = 8  # of one view: fewer hardly fix its pose
_REFINE_WITHIN = 0.35  # of the distance to the next corner: farther out lie its edges
_REFINE_MOST_PX = 11
_LONGEST_M = 100.0


@dataclass(frozen=True, slots=True)
class Corners:
    """Inner corners of a board found in one picture.

    Attributes:
        cells: int [N, 2], column and row of each on the board.
        pixels: float32 [N, 2], x and y of each, counted from the centre of the first pixel.
    """

    cells: np.ndarray
    pixels: np.ndarray


class Board(Protocol):
    """A flat pattern of known size whose corners can be found in pictures."""

    @property
    def spec(self) -> str:
        """As one types it."""

    @property
    def square(self) -> float:
        """Side of a square in metres."""

    def find(self, grey: np.ndarray) -> Corners | None:
        """Its corners in a picture uint8 [H, W], refined to sub-pixels; None if not there."""

    def explain(self, greys: Sequence[np.ndarray]) -> str:
        """Why the board may have been found in none of the pictures: what is there instead."""


KINDS: dict[str, tuple[str, Callable[[str], Board]]] = {}


def board_kind(name: str, form: str) -> Callable[[Callable[[str], Board]], Callable[[str], Board]]:
    """Register a parser of what follows "name:".

    Args:
        name: Of the kind of board.
        form: What a specification looks like, for messages.
    """

    def register(parse: Callable[[str], Board]) -> Callable[[str], Board]:
        KINDS[name] = form, parse
        return parse

    return register


def parse_board(text: str) -> Board:
    """The board that a text such as "chessboard:9x6:0.025" names.

    Raises:
        InputError: The text names no possible board.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        forms = " or ".join(form for form, _ in KINDS.values())
        raise InputError(f"board '{text}': kind '{kind}' is unknown; expected {forms}")
    form, parse = KINDS[kind]
    try:
        return parse(rest)
    except ValueError as error:
        raise InputError(f"board '{text}': {error}; expected {form}") from None


def parse_grid(text: str, least: int) -> tuple[int, int]:
    """ "9x6" as (9, 6), each from `least` to 100."""
    words = text.lower().split("x")
    if len(words) != 2 or not all(word.isdecimal() and word.isascii() for word in words):
        raise ValueError(f"'{text}' is no size in COLUMNSxROWS")
    columns, rows = (int(word[:9]) for word in words)
    if not (least <= columns <= 100 and least <= rows <= 100):
        raise ValueError(f"{columns}x{rows} is out of range {least} to 100")
    return columns, rows


def parse_length(text: str, what: str) -> float:
    """A length in metres, positive."""
    try:
        length = float(text)
    except ValueError:
        raise ValueError(f"{what} '{text}' is no number of metres") from None
    if not 0 < length <= _LONGEST_M:
        raise ValueError(f"{what} is {text} m, not above 0 and at most {_LONGEST_M:g}")
    return length


def board_points(cells: np.ndarray, square: float) -> np.ndarray:
    """float32 [N, 3]: corners on the board's plane in metres, from its first inner corner."""
    flat = np.asarray(cells, np.float32) * square
    return np.column_stack([flat, np.zeros(len(flat), np.float32)]).astype(np.float32)


def steps(corners: Corners) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of corners that are neighbours along a row, and along a column.

    Returns:
        Two int arrays [M, 2] of indices into the corners.
    """
    index = {(int(c), int(r)): i for i, (c, r) in enumerate(corners.cells)}
    along = (
        [(i, index[c + dc, r + dr]) for (c, r), i in index.items() if (c + dc, r + dr) in index]
        for dc, dr in ((1, 0), (0, 1))
    )
    across, down = (np.array(pairs, int).reshape(-1, 2) for pairs in along)
    return across, down


def refine(grey: np.ndarray, corners: Corners, within: float = _REFINE_WITHIN) -> Corners:
    """Move corners to the saddle points of brightness (cv2.cornerSubPix).

    The window keeps within the squares that meet at a corner: one that reaches other edges is
    drawn towards them, by pixels where the board is foreshortened.

    Args:
        grey: uint8 [H, W].
        corners: As found.
        within: Half the window, as a share of the distance to the next corner.
    """
    pairs = np.concatenate(steps(corners))
    if not len(pairs):
        return corners
    gaps = np.linalg.norm(corners.pixels[pairs[:, 0]] - corners.pixels[pairs[:, 1]], axis=1)
    window = int(np.clip(within * gaps.min(), 2, _REFINE_MOST_PX))
    stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 50, 1e-4)
    pixels = corners.pixels.reshape(-1, 1, 2).astype(np.float32)
    pixels = cv2.cornerSubPix(grey, pixels.copy(), (window, window), (-1, -1), stop)
    return Corners(corners.cells, pixels.reshape(-1, 2))
