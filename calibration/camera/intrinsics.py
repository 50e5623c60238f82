"""Intrinsics of a camera from views of a board.

Zhang, "A Flexible New Technique for Camera Calibration" (PAMI 2000), in OpenCV's implementation, on
selected views, with views that do not fit left out, and refused where the views leave the
intrinsics open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.camera.models import MODELS, Fit, FitError, find_pose, residuals
from calibration.camera.selection import coverage, select
from calibration.camera.views import Gathered, Rejection, View
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.manifest import CameraSpec

LEAST_VIEWS = 6
GOOD_VIEWS = 12
FOLDS = 5
MOST_FOCAL_DEVIATION = 0.01  # of the focal length
MOST_CENTRE_DEVIATION = 0.02  # of the picture's width
MOST_FOLDED = 0.05  # of the picture
_OUTLIER_SIGMAS = 3.0
_OUTLIER_FACTOR = 2.0  # times the median error at least: equally good views stay
_OUTLIER_LEAST_PX = 0.2  # no better are corners found
_MOST_RMS_PX = 1.0  # above: the board is bent, or the model is not the lens's
_GOOD_COVERAGE = 0.6


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibrated camera and how far it is to be trusted.

    Attributes:
        camera: The intrinsics.
        fit: The same as fitted, with the board's poses and the standard deviations.
        views: Those used.
        errors: float64 [views], RMS reprojection error of each in pixels.
        rejected: Pictures left out.
        pictures: How many could be read.
        rms: Reprojection error over all corners in pixels, RMS.
        cross_validated_rms: The same for views that had no part in the fit.
        coverage: Share of the picture's cells that hold a corner.
        tilt_deg: Largest angle between two views of the board.
        warnings: What might be better.
    """

    camera: CameraSpec
    fit: Fit
    views: list[View]
    errors: np.ndarray
    rejected: list[Rejection]
    pictures: int
    rms: float
    cross_validated_rms: float
    coverage: float
    tilt_deg: float
    warnings: list[str]


def calibrate(
    gathered: Gathered,
    model: str = "plumb_bob",
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> Calibration:
    """Fit a lens model to the views that were gathered.

    Args:
        gathered: Views of one board by one camera.
        model: A name of `MODELS`.
        advance: Called with how many of how many fits of the cross-validation are done.

    Raises:
        InputError: The model is unknown or there are too few views.
        RefusedError: The views do not determine the intrinsics, or the model does not fit them.
    """
    if model not in MODELS:
        raise InputError(f"lens model '{model}' is unknown; expected {', '.join(MODELS)}")
    size = gathered.size[1], gathered.size[0]
    chosen, rejected = select(gathered.views, gathered.size)
    _require_views(gathered, chosen, rejected)
    fit, views, misfits = _fit_without_outliers(model, chosen, size)
    _require_determined(fit, views, size)
    spec = CameraSpec(
        width=size[0],
        height=size[1],
        model=model,  # type: ignore[arg-type]
        K=fit.matrix.ravel().tolist(),
        D=fit.distortion.tolist(),
    )
    squares = [_squares(fit, view, pose) for view, pose in zip(views, fit.poses, strict=True)]
    rms = float(np.sqrt(np.concatenate(squares).mean()))
    validated = cross_validate(model, views, size, advance)
    covered = coverage(views, gathered.size)
    return Calibration(
        spec,
        fit,
        views,
        np.sqrt([square.mean() for square in squares]),
        gathered.rejected + rejected + misfits,
        gathered.pictures,
        rms,
        validated,
        covered,
        tilt(fit),
        _warnings(len(views), rms, validated, covered),
    )


def cross_validate(
    model: str,
    views: Sequence[View],
    size: tuple[int, int],
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> float:
    """Reprojection error of views that had no part in the fit, `FOLDS`-fold.

    Each fold's board poses are found with intrinsics fitted to the other folds.

    Returns:
        RMS in pixels over the corners of all views.
    """
    folds = min(FOLDS, len(views))
    squares = []
    for fold in range(folds):
        advance(fold, folds)
        rest = [view for index, view in enumerate(views) if index % folds != fold]
        try:
            fit = MODELS[model].fit(rest, size)
            squares += [_squares(fit, view, find_pose(fit, view)) for view in views[fold::folds]]
        except FitError as error:
            raise RefusedError(
                f"{model} cannot be fitted without {views[fold].name} and others ({error}): these "
                "views leave it open; take more, at different tilts"
            ) from None
    advance(folds, folds)
    return float(np.sqrt(np.concatenate(squares).mean()))


def tilt(fit: Fit) -> float:
    """Largest angle in degrees between the board's normals in two views."""
    normals = np.array([cv2.Rodrigues(rvec)[0][:, 2] for rvec, _ in fit.poses])
    return float(np.degrees(np.arccos(np.clip(normals @ normals.T, -1, 1)).max()))


def _squares(fit: Fit, view: View, pose: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return (residuals(fit, view, pose) ** 2).sum(axis=1)


def _require_views(gathered: Gathered, chosen: list[View], rejected: list[Rejection]) -> None:
    if len(chosen) >= LEAST_VIEWS:
        return
    alike = sum(rejection.kind == "duplicate" for rejection in rejected)
    if len(chosen) + alike >= LEAST_VIEWS:
        raise RefusedError(
            f"{len(chosen) + alike} views, but {alike} of them repeat others: {len(chosen)} differ "
            f"and {LEAST_VIEWS} are needed; move and tilt the board between pictures"
        )
    left = f", {len(rejected)} of them unusable ({rejected[0].reason})" if rejected else ""
    raise InputError(
        f"the board was found in {len(gathered.views)} of {gathered.pictures} images{left}; at "
        f"least {LEAST_VIEWS} are needed, better {GOOD_VIEWS} to {2 * GOOD_VIEWS}, with the board "
        "at different tilts and reaching all parts of the picture"
    )


def _fit_without_outliers(
    model: str, views: list[View], size: tuple[int, int]
) -> tuple[Fit, list[View], list[Rejection]]:
    """Fit, leave out the view that fits worst beyond the robust limit, and fit again.

    The limit is the views' median error plus three of their standard deviations as estimated from
    the median absolute deviation (Rousseeuw and Croux, JASA 1993), at least twice the median and
    what corners are found to.
    """
    views, rejected = list(views), []
    while True:
        fit, views, ill_posed = _fit(model, views, size)
        rejected += ill_posed
        pairs = zip(views, fit.poses, strict=True)
        errors = np.array([np.sqrt(_squares(fit, view, pose).mean()) for view, pose in pairs])
        middle = float(np.median(errors))
        spread = 1.4826 * float(np.median(np.abs(errors - middle)))
        limit = max(middle + _OUTLIER_SIGMAS * spread, _OUTLIER_FACTOR * middle, _OUTLIER_LEAST_PX)
        worst = int(np.argmax(errors))
        if errors[worst] <= limit:
            return fit, views, rejected
        reason = f"error {errors[worst]:.2f} px, above {limit:.2f} (median {middle:.2f})"
        rejected.append(Rejection(views[worst].name, "outlier", reason))
        del views[worst]
        if len(views) < LEAST_VIEWS:
            raise RefusedError(
                f"without views that do not fit ({_list(rejected)}) {len(views)} are left, "
                f"{LEAST_VIEWS} are needed; take more pictures"
            )


def _fit(
    model: str, views: list[View], size: tuple[int, int]
) -> tuple[Fit, list[View], list[Rejection]]:
    """Fit; where the optimiser gives up, without the view whose absence helps most."""
    try:
        return MODELS[model].fit(views, size), views, []
    except FitError as error:
        reason = " ".join(str(error).split())
    best: tuple[float, int, Fit] | None = None
    for index in range(len(views) if len(views) > LEAST_VIEWS else 0):
        rest = views[:index] + views[index + 1 :]
        try:
            fit = MODELS[model].fit(rest, size)
        except FitError:
            continue
        pairs = zip(rest, fit.poses, strict=True)
        error_px = float(np.concatenate([_squares(fit, view, pose) for view, pose in pairs]).mean())
        if best is None or error_px < best[0]:
            best = error_px, index, fit
    if best is None:
        raise RefusedError(
            f"{model} cannot be fitted to these {len(views)} views: {reason}; tilt the board "
            "differently, or choose another --model"
        )
    _, index, fit = best
    rejected = Rejection(views[index].name, "ill_posed", f"{model} cannot start from it")
    return fit, views[:index] + views[index + 1 :], [rejected]


def _require_determined(fit: Fit, views: list[View], size: tuple[int, int]) -> None:
    """Refuse intrinsics that the views leave open, and a model that turns back on itself."""
    focal = fit.deviations[:2] / np.diag(fit.matrix)[:2]
    centre = fit.deviations[2:] / size[0]
    if not (focal.max() <= MOST_FOCAL_DEVIATION and centre.max() <= MOST_CENTRE_DEVIATION):
        fx, fy, cx, cy = fit.deviations
        raise RefusedError(
            f"{len(views)} views do not determine the camera: standard deviations are fx {fx:.3g}, "
            f"fy {fy:.3g}, cx {cx:.3g}, cy {cy:.3g} px; at most {MOST_FOCAL_DEVIATION:.0%} of the "
            f"focal length and {MOST_CENTRE_DEVIATION:.0%} of the width are accepted. The board's "
            f"tilts differ by at most {tilt(fit):.0f} degrees: take pictures of it tilted by 20 to "
            "40 degrees, each way"
        )
    folded = MODELS[fit.model].folded(fit.matrix, fit.distortion, size)
    if folded > MOST_FOLDED:
        raise RefusedError(
            f"the fitted {fit.model} distortion turns back on itself in {folded:.0%} of the "
            "picture, where no corner held it: take views that reach the picture's corners, or "
            "choose another --model (plumb_bob has the fewest ways to go wrong, equidistant is for "
            "fisheye lenses)"
        )


def _warnings(views: int, rms: float, validated: float, covered: float) -> list[str]:
    checks = (
        (views < GOOD_VIEWS, f"{views} views are few; {GOOD_VIEWS} or more are better"),
        (
            covered < _GOOD_COVERAGE,
            f"corners cover {covered:.0%} of the picture; distortion is a guess where there are "
            "none: take views near its edges and corners",
        ),
        (
            rms > _MOST_RMS_PX,
            f"error of {rms:.2f} px: is the board flat, and the model that of the lens?",
        ),
        (
            validated > 2 * rms,
            f"views left out of the fit have an error of {validated:.2f} px, those in it "
            f"{rms:.2f}: take more views or choose a model with fewer coefficients",
        ),
    )
    return [text for wrong, text in checks if wrong]


def _list(rejected: Sequence[Rejection]) -> str:
    return "; ".join(f"{rejection.name}: {rejection.reason}" for rejection in rejected)
