"""Intrinsics of a robot's camera from pictures of a board."""

from __future__ import annotations

from calibration.camera import charuco, chessboard  # noqa: F401  (they register their boards)
from calibration.camera.boards import Board, parse_board
from calibration.camera.camera_info import camera_info, write_camera_info
from calibration.camera.intrinsics import Calibration, calibrate
from calibration.camera.models import MODELS
from calibration.camera.report import figures, write_report
from calibration.camera.views import Gathered, gather

__all__ = [
    "MODELS",
    "Board",
    "Calibration",
    "Gathered",
    "calibrate",
    "camera_info",
    "figures",
    "gather",
    "parse_board",
    "write_camera_info",
    "write_report",
]
