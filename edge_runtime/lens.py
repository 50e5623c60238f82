"""The lens: between pixels of the raw image and those of an undistorted one of the same size.

Points use continuous pixel coordinates in which pixel i covers [i, i + 1); OpenCV's camera matrix
counts from the first pixel's centre, so half a pixel is taken off on the way in and put back on
the way out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.manifest import CameraSpec

WIDEST_VIEW_DEG = 140.0  # a flat picture of more would be all margin: it grows with the tangent
_UNDONE_WITHIN_PX = 0.1  # an undistorted point that does not lead back this close is none
_CRITERIA = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-9)


class Lens:
    """Undoes and redoes the distortion of one camera at one image size.

    The undistorted image's camera matrix is chosen so that it holds no pixel without content
    (OpenCV's `alpha = 0`, `balance = 0`) and no more than `WIDEST_VIEW_DEG` each way; the
    outermost raw pixels may then lie outside of it.

    Args:
        camera: Intrinsics.
        raw_size: (height, width) of the raw image in pixels; of the aspect that the camera was
            calibrated at, since intrinsics are scaled to it.

    Attributes:
        matrix: float64 [3, 3], camera matrix at the raw size.
        view: float64 [3, 3], camera matrix of the undistorted image.

    Raises:
        InputError: The aspect differs, or the intrinsics leave nothing of the image.
    """

    def __init__(self, camera: CameraSpec, raw_size: tuple[int, int]) -> None:
        height, width = raw_size
        ratio = width / camera.width
        if abs(camera.height * ratio - height) > max(1.0, ratio):
            raise InputError(
                f"the camera was calibrated at {camera.width}x{camera.height}, but the image is "
                f"{width}x{height}: the aspect differs; calibrate again or crop as then"
            )
        self.matrix = np.array(camera.K, np.float64).reshape(3, 3)
        self.matrix[:2] *= ratio
        self.matrix[:2, 2] += 0.5 * ratio - 0.5  # centres of pixels, not their corners, scale
        self.distortion = np.array(camera.D or [0.0] * 4, np.float64)
        self._model = _MODELS[camera.model]
        self.view = self._model.view(self.matrix, self.distortion, (width, height))
        least = np.array([width, height]) / 2 / np.tan(np.radians(WIDEST_VIEW_DEG / 2))
        focal = self.view[[0, 1], [0, 1]]
        if (focal > 0).all() and (focal < least).any():
            self.view[[0, 1], [0, 1]] = focal * (least / focal).max()
            self.view[:2, 2] = self.matrix[:2, 2]
        if not self._shows(width, height):
            raise InputError(
                f"the camera's intrinsics (K {camera.K}, D {camera.D}, {camera.model}) leave "
                "nothing of the image; calibrate it again"
            )

    def _shows(self, width: int, height: int) -> bool:
        """Whether most of the undistorted image lies within the raw one, and nowhere far off."""
        focal = self.view[[0, 1], [0, 1]]
        if not np.isfinite(self.view).all() or (focal <= 0).any():
            return False
        x, y = np.meshgrid(np.linspace(0, width, 17), np.linspace(0, height, 17))
        with np.errstate(all="ignore"):
            places = self.distort(np.stack([x, y], -1)) / [width, height]
        near = np.all(np.abs(places - 0.5) <= 0.5 + 1e-3, axis=-1)
        return bool(np.all(np.abs(places) < 10) and near.mean() > 0.5)

    def distort(self, points: np.ndarray) -> np.ndarray:
        """Undistorted pixels to raw pixels, float64 [..., 2]."""
        focal, centre = self.view[[0, 1], [0, 1]], self.view[:2, 2]
        rays = (points.reshape(-1, 1, 2).astype(np.float64) - 0.5 - centre) / focal
        raw = self._model.distort(rays, self.matrix, self.distortion)
        return raw.reshape(points.shape) + 0.5

    def undistort(self, points: np.ndarray) -> np.ndarray:
        """Raw pixels to undistorted pixels, float64 [..., 2]; NaN where the lens shows none."""
        flat = np.ascontiguousarray(points.reshape(-1, 1, 2), np.float64) - 0.5
        seen = self._model.undistort(flat, self.matrix, self.distortion, self.view)
        seen = seen.reshape(points.shape) + 0.5
        with np.errstate(invalid="ignore", over="ignore"):
            miss = np.abs(self.distort(seen) - points).max(axis=-1)
        seen[~(miss <= _UNDONE_WITHIN_PX)] = np.nan  # also where the distance itself is NaN
        return seen


@dataclass(frozen=True, slots=True)
class _Model:
    """How OpenCV computes one family of lens models.

    Attributes:
        distort: Rays [N, 1, 2] (x/z, y/z), camera matrix, coefficients -> raw pixels [N, 1, 2].
        undistort: Raw pixels [N, 1, 2], camera matrix, coefficients, view -> its pixels.
        view: Camera matrix, coefficients, (width, height) -> camera matrix without distortion.
    """

    distort: Callable[..., np.ndarray]
    undistort: Callable[..., np.ndarray]
    view: Callable[..., np.ndarray]


def _pinhole_distort(rays: np.ndarray, matrix: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    rays = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
    zero = np.zeros(3)
    return cv2.projectPoints(rays, zero, zero, matrix, distortion)[0]


def undistort_pinhole(
    pixels: np.ndarray, matrix: np.ndarray, distortion: np.ndarray, view: np.ndarray
) -> np.ndarray:
    """Undo a plumb-bob or rational distortion, to convergence.

    OpenCV's own default stops after 5 steps, pixels off where the distortion is strong.

    Args:
        pixels: float64 [N, 1, 2], raw, from the first pixel's centre.
        matrix: float64 [3, 3], camera matrix.
        distortion: Coefficients.
        view: float64 [3, 3], camera matrix of the result; the identity for rays x/z, y/z.

    Returns:
        float64 [N, 1, 2].
    """
    stepwise: Any = getattr(cv2, "undistortPointsIter", None)  # its name up to OpenCV 4
    if stepwise is not None:
        return stepwise(pixels, matrix, distortion, np.eye(3), view, _CRITERIA)
    return cv2.undistortPoints(pixels, matrix, distortion, R=np.eye(3), P=view, criteria=_CRITERIA)


def _pinhole_view(matrix: np.ndarray, distortion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(cv2.getOptimalNewCameraMatrix(matrix, distortion, size, 0)[0])


def _fisheye_distort(rays: np.ndarray, matrix: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    return cv2.fisheye.distortPoints(rays, matrix, distortion)


def _fisheye_undistort(
    pixels: np.ndarray, matrix: np.ndarray, distortion: np.ndarray, view: np.ndarray
) -> np.ndarray:
    return cv2.fisheye.undistortPoints(
        pixels, matrix, distortion, R=np.eye(3), P=view, criteria=_CRITERIA
    )


def _fisheye_view(matrix: np.ndarray, distortion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(
        cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
            matrix, distortion, size, np.eye(3), balance=0.0
        )
    )


_PINHOLE = _Model(_pinhole_distort, undistort_pinhole, _pinhole_view)
_MODELS = {
    "plumb_bob": _PINHOLE,
    "rational_polynomial": _PINHOLE,
    "equidistant": _Model(_fisheye_distort, _fisheye_undistort, _fisheye_view),
}
