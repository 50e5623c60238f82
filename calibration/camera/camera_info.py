"""`camera_info.yaml` as ROS's camera_calibration_parsers reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.lens import Lens
from edge_runtime.manifest import CameraSpec


def camera_info(camera: CameraSpec, name: str) -> dict[str, Any]:
    """The file's content: matrices row by row, the projection that of the undistorted image."""
    view = Lens(camera, (camera.height, camera.width)).view
    projection = np.column_stack([view, np.zeros(3)])
    return {
        "image_width": camera.width,
        "image_height": camera.height,
        "camera_name": name,
        "camera_matrix": _matrix(np.reshape(camera.K, (3, 3))),
        "distortion_model": camera.model,
        "distortion_coefficients": _matrix(np.reshape(camera.D, (1, -1))),
        "rectification_matrix": _matrix(np.eye(3)),
        "projection_matrix": _matrix(projection),
    }


def write_camera_info(path: Path, camera: CameraSpec, name: str) -> None:
    """Write `camera_info.yaml`, atomically.

    Raises:
        InputError: ROS would not take the name.
    """
    check_name(name)
    text = yaml.safe_dump(camera_info(camera, name), sort_keys=False, default_flow_style=None)
    atomic_write_text(path, text)


def check_name(name: str) -> None:
    """Refuse camera names other than letters, digits and underscores, as camera_info_manager."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise InputError(
            f"camera name '{name}': expected letters, digits and underscores, such as front_left"
        )


def _matrix(values: np.ndarray) -> dict[str, Any]:
    rows, columns = values.shape
    return {"rows": rows, "cols": columns, "data": [float(value) for value in values.ravel()]}
