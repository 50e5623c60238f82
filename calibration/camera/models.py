"""Lens models: fitting one to views of a board, and projecting with it.

A model registers itself in `MODELS` under the name that sensor_msgs/CameraInfo gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.camera.views import View
from edge_runtime.lens import undistort_pinhole

Pose = tuple[np.ndarray, np.ndarray]  # rotation vector [3], translation [3] in metres
_FISHEYE_STARTS = (0.3, 0.45, 0.8)  # of the longer side: 190, 130 and 70 degrees across it
_CRITERIA = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 200, 1e-10)


class FitError(ArithmeticError):
    """The optimiser gave up, or no pose of the board explains a view."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Intrinsics, and the board's pose in each view that they were fitted to.

    Attributes:
        model: Name of the lens model.
        matrix: float64 [3, 3], camera matrix.
        distortion: float64 [n], coefficients in the model's order.
        poses: Of each view.
        deviations: float64 [4], standard deviations of fx, fy, cx, cy in pixels.
    """

    model: str
    matrix: np.ndarray
    distortion: np.ndarray
    poses: list[Pose]
    deviations: np.ndarray


@dataclass(frozen=True, slots=True)
class Projection:
    """Board points in a picture and how they move with the parameters.

    Attributes:
        pixels: float64 [N, 2].
        by_pose: float64 [2N, 6], derivatives by rotation vector and translation.
        by_lens: float64 [2N, 4 + n], derivatives by fx, fy, cx, cy and the coefficients.
    """

    pixels: np.ndarray
    by_pose: np.ndarray
    by_lens: np.ndarray


@dataclass(frozen=True, slots=True)
class LensModel:
    """One lens model.

    Attributes:
        coefficients: How many distortion coefficients it has.
        fit: Views, (width, height) -> `Fit`.
        project: Points [N, 3], pose, matrix, distortion -> `Projection`.
        normalise: Pixels [N, 2], matrix, distortion -> rays x/z, y/z [N, 2].
        folded: Matrix, distortion, (width, height) -> share of the picture, 0 to 1, where the
            fitted distortion turns back on itself, so that it cannot be undone there.
    """

    coefficients: int
    fit: Callable[[Sequence[View], tuple[int, int]], Fit]
    project: Callable[[np.ndarray, Pose, np.ndarray, np.ndarray], Projection]
    normalise: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    folded: Callable[[np.ndarray, np.ndarray, tuple[int, int]], float]


MODELS: dict[str, LensModel] = {}


def residuals(fit: Fit, view: View, pose: Pose) -> np.ndarray:
    """float64 [N, 2]: where a view's corners are, less where the fit puts them, in pixels."""
    project = MODELS[fit.model].project
    return view.pixels - project(view.points, pose, fit.matrix, fit.distortion).pixels


def standard_deviations(
    model: str, views: Sequence[View], matrix: np.ndarray, distortion: np.ndarray, poses: list[Pose]
) -> np.ndarray:
    """Standard deviations of fx, fy, cx, cy at the optimum of a least-squares fit.

    From the inverse of the normal equations in which the poses are eliminated (Triggs et al.,
    "Bundle Adjustment - A Modern Synthesis", 1999, sections 6 and 8), with the noise estimated from
    the residuals. Where views determine the intrinsics these are the figures of OpenCV's
    calibrateCameraExtended; where they do not, OpenCV's pseudo-inverse gives tiny ones.

    Returns:
        float64 [4], pixels; infinite where the views do not determine the parameters.
    """
    size = 4 + len(distortion)
    normal, squares, count = np.zeros((size, size)), 0.0, 0
    for view, pose in zip(views, poses, strict=True):
        projection = MODELS[model].project(view.points, pose, matrix, distortion)
        q, _ = np.linalg.qr(projection.by_pose)
        free = projection.by_lens - q @ (q.T @ projection.by_lens)
        normal += free.T @ free
        squares += float(((view.pixels - projection.pixels) ** 2).sum())
        count += 2 * len(view.pixels) - 6
    scale = np.sqrt(np.diag(normal))
    if not np.isfinite(scale).all() or (scale <= 0).any():
        return np.full(4, np.inf)
    scaled = normal / np.outer(scale, scale)
    if np.linalg.eigvalsh(scaled)[0] < 1e-13 or count <= size:
        return np.full(4, np.inf)
    covariance = np.linalg.inv(scaled) / np.outer(scale, scale) * squares / (count - size)
    return np.sqrt(np.diag(covariance)[:4])


def find_pose(fit: Fit, view: View) -> Pose:
    """The board's pose that fits a view best under given intrinsics.

    A pose from the plane's homography (cv2.solvePnP, IPPE) on undistorted rays, then Gauss-Newton
    steps on the error in the picture.

    Raises:
        FitError: No pose explains the view.
    """
    model = MODELS[fit.model]
    rays = model.normalise(view.pixels, fit.matrix, fit.distortion)
    good = np.isfinite(rays).all(axis=1) & (np.abs(rays) < 100).all(axis=1)
    if good.sum() < 4:
        raise FitError(f"{view.name}: the lens model cannot be undone at its corners")
    points = view.points[good].astype(np.float64)
    try:
        found, rvec, tvec = cv2.solvePnP(
            points, rays[good], np.eye(3), None, flags=cv2.SOLVEPNP_IPPE
        )
    except cv2.error as error:
        raise FitError(f"{view.name}: {error}") from None
    if not found:
        raise FitError(f"{view.name}: no pose of the board explains its corners")
    pose = np.concatenate([rvec.ravel(), tvec.ravel()])
    for _ in range(20):
        current = model.project(view.points, (pose[:3], pose[3:]), fit.matrix, fit.distortion)
        miss = (view.pixels - current.pixels).ravel()
        step = np.linalg.lstsq(current.by_pose, miss, rcond=None)[0]
        pose = pose + step
        if np.abs(step).max() < 1e-9:
            break
    return pose[:3], pose[3:]


def _fit_plumb_bob(views: Sequence[View], size: tuple[int, int]) -> Fit:
    return _fit_pinhole("plumb_bob", 5, views, size, None, None, 0)


def _fit_rational(views: Sequence[View], size: tuple[int, int]) -> Fit:
    """From the plumb-bob fit on: from none, the optimiser ends in a minimum far away."""
    start = _fit_plumb_bob(views, size)
    distortion = np.concatenate([start.distortion, np.zeros(3)])
    flags = cv2.CALIB_RATIONAL_MODEL | cv2.CALIB_USE_INTRINSIC_GUESS
    return _fit_pinhole(
        "rational_polynomial", 8, views, size, start.matrix.copy(), distortion, flags
    )


def _fit_pinhole(
    model: str,
    coefficients: int,
    views: Sequence[View],
    size: tuple[int, int],
    matrix: np.ndarray | None,
    distortion: np.ndarray | None,
    flags: int,
) -> Fit:
    points = [view.points for view in views]
    pixels = [view.pixels.reshape(-1, 1, 2) for view in views]
    try:
        _, matrix, distortion, rvecs, tvecs = cv2.calibrateCamera(
            points, pixels, size, matrix, distortion, flags=flags, criteria=_CRITERIA
        )
    except cv2.error as error:
        raise FitError(str(error)) from None
    poses = [(r.ravel(), t.ravel()) for r, t in zip(rvecs, tvecs, strict=True)]
    return _finished(model, views, matrix, distortion.ravel()[:coefficients], poses)


def _finished(
    model: str, views: Sequence[View], matrix: np.ndarray, distortion: np.ndarray, poses: list[Pose]
) -> Fit:
    numbers = np.concatenate([matrix.ravel(), distortion, *map(np.concatenate, poses)])
    if not np.isfinite(numbers).all() or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise FitError("the optimisation ran away: its result is no camera")
    deviations = standard_deviations(model, views, matrix, distortion, poses)
    return Fit(model, matrix, distortion, poses, deviations)


def _grid(size: tuple[int, int]) -> np.ndarray:
    """float64 [N, 2]: pixels spread over a picture of (width, height), corners included."""
    x, y = np.meshgrid(np.linspace(0, size[0] - 1, 64), np.linspace(0, size[1] - 1, 48))
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def _folded_pinhole(matrix: np.ndarray, distortion: np.ndarray, size: tuple[int, int]) -> float:
    rays = np.linspace(0, 20, 4001)
    radial = _project_pinhole(
        np.column_stack([rays, np.zeros_like(rays), np.ones_like(rays)]),
        (np.zeros(3), np.zeros(3)),
        np.eye(3),
        np.where(np.isin(np.arange(len(distortion)), (2, 3)), 0, distortion),  # not p1, p2
    ).pixels[:, 0]
    return _beyond(radial, matrix, size)


def _folded_fisheye(matrix: np.ndarray, distortion: np.ndarray, size: tuple[int, int]) -> float:
    angle = np.linspace(0, np.pi / 2, 1001)
    bent = angle * (1 + sum(k * angle ** (2 * i + 2) for i, k in enumerate(distortion)))
    return 0.0 if (np.diff(bent) > 0).all() else _beyond(bent, matrix, size)


def _beyond(radius: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> float:
    """Share of a picture outside the radius up to which `radius` grows."""
    falls = np.flatnonzero(~(np.diff(radius) > 0))
    limit = radius[falls[0]] if len(falls) else radius[-1]
    away = (_grid(size) - matrix[:2, 2]) / np.diag(matrix)[:2]
    return float((np.linalg.norm(away, axis=1) > limit).mean())


def _project_pinhole(
    points: np.ndarray, pose: Pose, matrix: np.ndarray, distortion: np.ndarray
) -> Projection:
    pixels, jacobian = cv2.projectPoints(points.astype(np.float64), *pose, matrix, distortion)
    by_lens = jacobian[:, 6 : 10 + len(distortion)]
    return Projection(pixels.reshape(-1, 2), jacobian[:, :6], by_lens)


def _normalise_pinhole(
    pixels: np.ndarray, matrix: np.ndarray, distortion: np.ndarray
) -> np.ndarray:
    flat = pixels.reshape(-1, 1, 2).astype(np.float64)
    return undistort_pinhole(flat, matrix, distortion, np.eye(3)).reshape(-1, 2)


def _fit_fisheye(views: Sequence[View], size: tuple[int, int]) -> Fit:
    """The best fit from several starts: from a bad one OpenCV fails or, in 4.8, stays there."""
    points = [view.points.reshape(1, -1, 3).astype(np.float64) for view in views]
    pixels = [view.pixels.reshape(1, -1, 2).astype(np.float64) for view in views]
    where = cv2 if hasattr(cv2, "CALIB_RECOMPUTE_EXTRINSIC") else cv2.fisheye  # up to OpenCV 4
    flags = where.CALIB_RECOMPUTE_EXTRINSIC | where.CALIB_FIX_SKEW
    flags |= where.CALIB_USE_INTRINSIC_GUESS
    best: tuple[float, Fit] | None = None
    reason = ""
    for share in _FISHEYE_STARTS:
        focal = share * max(size)
        matrix = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
        try:
            rms, matrix, distortion, rvecs, tvecs = cv2.fisheye.calibrate(
                points, pixels, size, matrix, np.zeros((4, 1)), flags=flags, criteria=_CRITERIA
            )
            poses = [(np.ravel(r), np.ravel(t)) for r, t in zip(rvecs, tvecs, strict=True)]
            fit = _finished("equidistant", views, matrix, distortion.ravel(), poses)
        except (cv2.error, FitError) as error:
            reason = str(error)
            continue
        if best is None or rms < best[0]:
            best = rms, fit
    if best is None:
        raise FitError(reason)
    return best[1]


def _project_fisheye(
    points: np.ndarray, pose: Pose, matrix: np.ndarray, distortion: np.ndarray
) -> Projection:
    pixels, jacobian = cv2.fisheye.projectPoints(
        points.reshape(1, -1, 3).astype(np.float64),
        pose[0].reshape(3, 1),
        pose[1].reshape(3, 1),
        matrix,
        distortion.reshape(4, 1),
    )
    return Projection(pixels.reshape(-1, 2), jacobian[:, 8:14], jacobian[:, :8])


def _normalise_fisheye(
    pixels: np.ndarray, matrix: np.ndarray, distortion: np.ndarray
) -> np.ndarray:
    flat = pixels.reshape(-1, 1, 2).astype(np.float64)
    return cv2.fisheye.undistortPoints(flat, matrix, distortion).reshape(-1, 2)


MODELS["plumb_bob"] = LensModel(
    5, _fit_plumb_bob, _project_pinhole, _normalise_pinhole, _folded_pinhole
)
MODELS["rational_polynomial"] = LensModel(
    8, _fit_rational, _project_pinhole, _normalise_pinhole, _folded_pinhole
)
MODELS["equidistant"] = LensModel(
    4, _fit_fisheye, _project_fisheye, _normalise_fisheye, _folded_fisheye
)
