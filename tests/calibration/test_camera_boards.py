"""Boards: their names, and their corners in pictures rendered with known geometry."""

from __future__ import annotations

import camera_scenes as scenes
import cv2
import numpy as np
import pytest

from calibration.camera import parse_board
from calibration.camera.boards import Corners, refine
from calibration.camera.models import MODELS
from calibration.camera.sharpness import edge_width
from edge_runtime.errors import InputError

MATRIX = np.array([[533.0, 0, 322], [0, 531, 238], [0, 0, 1]])
POSE = np.array([0.3, -0.4, 0.1]), np.array([-0.09, -0.06, 0.4])


@pytest.fixture(scope="module")
def camera() -> scenes.Camera:
    return scenes.Camera("plumb_bob", MATRIX, np.array([-0.29, 0.08, 0.001, -0.002, 0.01]))


def grey_photo(camera: scenes.Camera, texture: np.ndarray, blur: float = 0.6) -> np.ndarray:
    return cv2.cvtColor(scenes.photo(camera, texture, *POSE, blur=blur), cv2.COLOR_RGB2GRAY)


@pytest.mark.parametrize(
    ("spec", "texture"),
    [
        ("chessboard:9x6:0.025", scenes.chessboard(9, 6)),
        ("charuco:10x7:0.025:0.01875:4x4_50", scenes.charuco(10, 7, cv2.aruco.DICT_4X4_50)),
    ],
    ids=["chessboard", "charuco"],
)
def test_corners_are_found_to_a_tenth_of_a_pixel(
    camera: scenes.Camera, spec: str, texture: np.ndarray
) -> None:
    corners = parse_board(spec).find(grey_photo(camera, texture))
    assert corners is not None and len(corners.cells) == 54
    flat = np.column_stack([corners.cells, np.zeros(54)]) * 0.025
    truth = MODELS["plumb_bob"].project(flat, POSE, camera.K, camera.D).pixels
    # a chessboard may be counted from its other end
    turned = MODELS["plumb_bob"].project(flat[::-1], POSE, camera.K, camera.D).pixels
    off = min(np.linalg.norm(corners.pixels - where, axis=1).max() for where in (truth, turned))
    assert off < 0.2
    assert np.linalg.norm(corners.pixels - corners.pixels.mean(0), axis=1).max() > 100


def test_a_large_picture_is_searched_small_and_measured_in_full(camera: scenes.Camera) -> None:
    board = parse_board("chessboard:9x6:0.025")
    grey = grey_photo(camera, scenes.chessboard(9, 6))
    large = cv2.resize(grey, None, fx=6.1, fy=6.1, interpolation=cv2.INTER_CUBIC)
    small, full = board.find(grey), board.find(large)
    assert small is not None and full is not None
    places = (full.pixels + 0.5) / [large.shape[1] / 640, large.shape[0] / 480] - 0.5
    turned = np.abs(places - small.pixels).max() > 50
    assert np.abs((places[::-1] if turned else places) - small.pixels).max() < 0.15


def test_a_charuco_board_may_be_cut_off(camera: scenes.Camera) -> None:
    board = parse_board("charuco:10x7:0.025:0.01875:DICT_4X4_50")
    grey = grey_photo(camera, scenes.charuco(10, 7, cv2.aruco.DICT_4X4_50))
    grey[:, 350:] = 120
    corners = board.find(grey)
    assert corners is not None and 8 <= len(corners.cells) < 54
    assert len(set(map(tuple, corners.cells.tolist()))) == len(corners.cells)
    grey[:, 240:] = 120
    assert board.find(grey) is None


def test_refining_keeps_within_the_squares(camera: scenes.Camera) -> None:
    """A window over the neighbouring corners would move them by pixels."""
    grey = grey_photo(camera, scenes.chessboard(9, 6))
    corners = parse_board("chessboard:9x6:0.025").find(grey)
    assert corners is not None
    rng = np.random.default_rng(0)
    shaken = corners.pixels + rng.uniform(-1.5, 1.5, corners.pixels.shape).astype(np.float32)
    again = refine(grey, Corners(corners.cells, shaken))
    assert np.abs(again.pixels - corners.pixels).max() < 0.1
    lone = Corners(corners.cells[:1], corners.pixels[:1])
    assert refine(grey, lone) is lone


def test_blur_in_one_direction_is_seen(camera: scenes.Camera) -> None:
    board = parse_board("chessboard:9x6:0.025")
    texture = scenes.chessboard(9, 6)
    grey = grey_photo(camera, texture, blur=0.6)
    corners = board.find(grey)
    assert corners is not None
    sharp = edge_width(grey, corners)
    assert 1.0 < sharp < 3.0
    for kernel in (np.ones((1, 9)), np.ones((9, 1))):
        moved = cv2.filter2D(grey, -1, kernel / kernel.sum())
        assert edge_width(moved, corners) > 2 * sharp
    assert np.isnan(edge_width(grey, Corners(corners.cells[:1], corners.pixels[:1])))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "kind '' is unknown"),
        ("9x6", "kind '9x6' is unknown; expected charuco:COLSxROWS"),
        ("circles:9x6:0.02", "or chessboard:COLSxROWS"),
        ("chessboard", "1 parts, not 2"),
        ("chessboard:9x6", "1 parts, not 2"),
        ("chessboard:9x6:0.025:7", "3 parts, not 2"),
        ("chessboard:9by6:0.025", "'9by6' is no size"),
        ("chessboard:9x6x3:0.025", "no size"),
        ("chessboard:-9x6:0.025", "no size"),
        ("chessboard:²x6:0.025", "no size"),
        ("chessboard:2x6:0.025", "2x6 is out of range"),
        ("chessboard:9x99999999999999:0.025", "out of range"),
        ("chessboard:9x6:wide", "'wide' is no number of metres"),
        ("chessboard:9x6:0", "not above 0"),
        ("chessboard:9x6:-1", "not above 0"),
        ("chessboard:9x6:nan", "not above 0"),
        ("chessboard:9x6:inf", "at most 100"),
        ("charuco:8x6:0.03:0.022", "3 parts, not 4"),
        ("charuco:8x6:0.03:0.022:4X4_50:old", "5 parts, not 4"),
        ("charuco:8x6:0.03:0.03:4X4_50", "marker 0.03 m is not smaller than square"),
        ("charuco:8x6:0.03:0.022:9X9_50", "dictionary '9X9_50' is none of 4X4_50, 4X4_100"),
        ("charuco:20x20:0.03:0.022:4X4_50", "need 200 markers, 4X4_50 has 50"),
    ],
)
def test_a_malformed_board_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=f"board '{text}'") as caught:
        parse_board(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "chessboard:9x6:0.025",
        "charuco:8x6:0.03:0.022:4X4_50",
        "charuco:8x6:0.03:0.022:5X5_100:legacy",
    ],
)
def test_a_board_says_how_it_is_typed(text: str) -> None:
    assert parse_board(text).spec == text
    assert parse_board(parse_board(text).spec).spec == text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("chessboard:10x7:0.025", "chessboard:9x6:0.025; count inner corners, not squares"),
        ("chessboard:8x6:0.025", "1 of 1 looked at show one of 9x6 inner corners"),
        ("charuco:7x10:0.025:0.018:4X4_50", "no markers of any known dictionary"),
    ],
)
def test_a_wrong_board_is_told_from_what_a_chessboards_picture_shows(
    camera: scenes.Camera, given: str, says: str
) -> None:
    board, grey = parse_board(given), grey_photo(camera, scenes.chessboard(9, 6))
    assert board.find(grey) is None
    assert says in board.explain([grey])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("charuco:7x10:0.025:0.018:4X4_50", "charuco:10x7:0.025:0.018:4X4_50"),
        ("charuco:10x7:0.025:0.018:6X6_250", "markers of 4X4_1000 or a part of it"),
        ("charuco:5x5:0.025:0.018:4X4_50", "are there 5x5 squares"),
    ],
)
def test_a_wrong_board_is_told_from_what_a_charucos_picture_shows(
    camera: scenes.Camera, given: str, says: str
) -> None:
    grey = grey_photo(camera, scenes.charuco(10, 7, cv2.aruco.DICT_4X4_50))
    board = parse_board(given)
    assert says in board.explain([grey])


def test_nothing_is_made_of_a_picture_without_a_board() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (240, 320), np.uint8)
    board = parse_board("chessboard:9x6:0.025")
    assert board.find(noise) is None
    assert "no chessboard of another size either (tried also 6x9" in board.explain([noise])
