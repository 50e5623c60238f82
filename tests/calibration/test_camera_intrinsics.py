"""Intrinsics that are known are found again; views that leave them open are refused."""

from __future__ import annotations

import dataclasses

import camera_scenes as scenes
import cv2
import numpy as np
import pytest

from calibration.camera import MODELS, Gathered, calibrate, parse_board
from calibration.camera.intrinsics import LEAST_VIEWS, cross_validate
from calibration.camera.models import find_pose, residuals, standard_deviations
from calibration.camera.selection import MOST_VIEWS, select
from calibration.camera.straightness import measure
from calibration.camera.views import View, make_view
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.lens import Lens

SIZE = (scenes.HEIGHT, scenes.WIDTH)
CORNERS = (9, 6)
LENSES = {
    "plumb_bob": ([533.0, 531.0, 342.0, 234.0], [-0.29, 0.08, 0.001, -0.002, 0.01], 0.45),
    "rational_polynomial": (
        [350.0, 352.0, 322.0, 238.0],
        [0.5, 0.1, 0.001, 0.001, 0.01, 0.8, 0.3, 0.03],
        0.3,
    ),
    "equidistant": ([300.0, 301.0, 322.0, 238.0], [0.02, -0.01, 0.002, 0.0], 0.26),
}
REACH = {"plumb_bob": (0.33, 0.24), "rational_polynomial": (0.6, 0.42), "equidistant": (0.7, 0.5)}
BOARDS = {
    "chessboard": ("chessboard:9x6:0.025", scenes.chessboard(9, 6)),
    "charuco": ("charuco:10x7:0.025:0.01875:4X4_50", scenes.charuco(10, 7, cv2.aruco.DICT_4X4_50)),
}


def camera_of(model: str) -> scenes.Camera:
    (fx, fy, cx, cy), coefficients, _ = LENSES[model]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return scenes.Camera(model, matrix, np.array(coefficients))


@pytest.fixture(scope="module")
def cameras() -> dict[str, scenes.Camera]:
    return {model: camera_of(model) for model in LENSES}


def ideal(camera: scenes.Camera, count: int = 14, noise: float = 0.1, **how: float) -> Gathered:
    """Views by projection; places of the board as `scenes.poses` gives them."""
    how.setdefault("reach", REACH[camera.model])  # type: ignore[arg-type]
    places = scenes.poses(count, CORNERS, LENSES[camera.model][2], **how)  # type: ignore[arg-type]
    return Gathered(scenes.ideal_views(camera, places, noise), size=SIZE)


def seen(camera: scenes.Camera, spec: str, texture: np.ndarray) -> Gathered:
    """Views whose corners are found in rendered pictures."""
    board, found = parse_board(spec), Gathered(size=SIZE)
    count = 20 if camera.model == "rational_polynomial" else 14
    where = scenes.poses(count, CORNERS, LENSES[camera.model][2], reach=REACH[camera.model])
    for index, pose in enumerate(where):
        image = scenes.photo(camera, texture, *pose, seed=index)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        corners = board.find(grey)
        if corners is not None:
            found.views.append(make_view(f"photo{index:02}", image, grey, corners, board.square))
    return found


@pytest.mark.parametrize(
    ("model", "board"),
    [  # a whole chessboard never reaches the corners, which the rational model needs
        ("plumb_bob", "chessboard"),
        pytest.param("equidistant", "chessboard", marks=pytest.mark.slow),
        pytest.param("plumb_bob", "charuco", marks=pytest.mark.slow),
        ("rational_polynomial", "charuco"),
        ("equidistant", "charuco"),
    ],
)
def test_a_known_lens_is_found_again(
    cameras: dict[str, scenes.Camera], model: str, board: str
) -> None:
    """Focal lengths to 0.2%, the principal point and every ray to a pixel."""
    camera = cameras[model]
    result = calibrate(seen(camera, *BOARDS[board]), model)
    assert len(result.views) >= 10
    assert result.rms < 0.2 and result.rms <= result.cross_validated_rms < 0.3
    np.testing.assert_allclose(np.diag(result.fit.matrix), np.diag(camera.K), rtol=0.002)
    np.testing.assert_allclose(result.fit.matrix[:2, 2], camera.K[:2, 2], atol=1)
    for view, pose in zip(result.views, result.fit.poses, strict=True):
        rays = MODELS[model].normalise(view.pixels, result.fit.matrix, result.fit.distortion)
        points = np.column_stack([rays, np.ones(len(rays))])
        still = np.zeros(3), np.zeros(3)
        truth = MODELS[model].project(points, still, camera.K, camera.D).pixels
        assert np.abs(truth - view.pixels).max() < 1
        assert np.linalg.norm(residuals(result.fit, view, pose), axis=1).max() < 1.5
    straight = measure(result.views, Lens(result.camera, SIZE))
    assert straight.after < 0.15 < 0.35 < straight.before


def opencv_deviations(views: list[View]) -> np.ndarray:
    """Standard deviations of fx, fy, cx, cy as calibrateCameraExtended gives them."""
    points = [view.points for view in views]
    pixels = [view.pixels.reshape(-1, 1, 2) for view in views]
    return cv2.calibrateCameraExtended(points, pixels, SIZE[::-1], None, None)[5].ravel()[:4]


def test_deviations_are_those_of_opencv_only_where_views_determine_the_camera(
    cameras: dict[str, scenes.Camera],
) -> None:
    views = ideal(cameras["plumb_bob"]).views
    fit = MODELS["plumb_bob"].fit(views, SIZE[::-1])
    np.testing.assert_allclose(fit.deviations, opencv_deviations(views), rtol=0.01)
    head_on = ideal(cameras["plumb_bob"], 8, tilt=0.0).views
    open_fit = MODELS["plumb_bob"].fit(head_on, SIZE[::-1])
    assert abs(open_fit.matrix[0, 0] - 533) > 5 > 1 > opencv_deviations(head_on)[0]
    assert open_fit.deviations[0] > 100


@pytest.mark.parametrize("model", LENSES)
def test_deviations_tell_how_far_off_the_parameters_are(
    cameras: dict[str, scenes.Camera], model: str
) -> None:
    camera = cameras[model]
    fit = MODELS[model].fit(ideal(camera, noise=0.2).views, SIZE[::-1])
    off = np.abs(fit.matrix - camera.K)[[0, 1, 0, 1], [0, 1, 2, 2]]
    assert np.all(off < 4 * fit.deviations) and np.all(fit.deviations < 2)
    less = MODELS[model].fit(ideal(camera, noise=0.05).views, SIZE[::-1])
    np.testing.assert_allclose(less.deviations * 4, fit.deviations, rtol=0.3)


def test_too_few_corners_determine_nothing(cameras: dict[str, scenes.Camera]) -> None:
    view = ideal(cameras["plumb_bob"], 1).views[0]
    few = dataclasses.replace(view, points=view.points[:4], pixels=view.pixels[:4])
    pose = np.array([0.1, 0.2, 0.0]), np.array([0.0, 0.0, 0.5])
    camera = cameras["plumb_bob"]
    deviations = standard_deviations("plumb_bob", [few], camera.K, camera.D, [pose])
    assert np.isinf(deviations).all()


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize("tilt", [0.0, 0.03])
def test_a_board_seen_head_on_only_is_refused(
    cameras: dict[str, scenes.Camera], model: str, tilt: float
) -> None:
    with pytest.raises(RefusedError) as caught:
        calibrate(ideal(cameras[model], 20, noise=0.05, tilt=tilt), model)
    assert "tilt" in str(caught.value) or "turns back" in str(caught.value)


def test_the_same_view_again_and_again_is_refused(cameras: dict[str, scenes.Camera]) -> None:
    place = scenes.poses(3, CORNERS, 0.45)[1]
    views = Gathered(scenes.ideal_views(cameras["plumb_bob"], [place] * 12), size=SIZE)
    with pytest.raises(RefusedError, match="12 views, but 11 of them repeat others: 1 differ"):
        calibrate(views)


def test_too_few_views_say_how_many_are_needed(cameras: dict[str, scenes.Camera]) -> None:
    with pytest.raises(InputError, match=f"found in 5 of 5 images; at least {LEAST_VIEWS}"):
        calibrate(ideal(cameras["plumb_bob"], 5))


def test_a_view_that_does_not_fit_is_left_out_with_its_reason(
    cameras: dict[str, scenes.Camera],
) -> None:
    gathered = ideal(cameras["plumb_bob"])
    spoilt = gathered.views[4]
    spoilt.pixels[10:20] += 4.0  # a reflection, a corner taken for the next
    result = calibrate(gathered)
    assert [(r.name, r.kind) for r in result.rejected] == [(spoilt.name, "outlier")]
    assert "px, above" in result.rejected[0].reason
    assert len(result.views) == 13 and result.rms < 0.2
    np.testing.assert_allclose(np.diag(result.fit.matrix)[:2], [533, 531], rtol=0.005)


def test_views_that_mostly_do_not_fit_are_refused(cameras: dict[str, scenes.Camera]) -> None:
    gathered = ideal(cameras["plumb_bob"], 7)
    for index in (1, 3):
        gathered.views[index].pixels[:25] += 5.0 * (index - 2)
    with pytest.raises(RefusedError, match="without views that do not fit .*5 are left"):
        calibrate(gathered)


def test_equally_good_views_all_stay(cameras: dict[str, scenes.Camera]) -> None:
    result = calibrate(ideal(cameras["plumb_bob"], 20))
    assert len(result.views) == 20 and not result.rejected


def test_blurred_repeated_and_surplus_views_are_left_out(
    cameras: dict[str, scenes.Camera],
) -> None:
    views = ideal(cameras["plumb_bob"], 60).views
    blurred = dataclasses.replace(views[7], blur=6.5)
    twin = dataclasses.replace(views[9], name="twin", pixels=views[9].pixels + 1, blur=2.5)
    chosen, rejected = select([*views[:7], blurred, *views[8:], twin], SIZE)
    assert len(chosen) == MOST_VIEWS
    kinds = {rejection.name: rejection.kind for rejection in rejected}
    assert kinds[blurred.name] == "blurred" and kinds["twin"] == "duplicate"
    counts = [list(kinds.values()).count(kind) for kind in ("duplicate", "surplus")]
    assert counts[1] > 0 and MOST_VIEWS + 1 + sum(counts) == 61
    assert {view.name for view in chosen} | set(kinds) == {v.name for v in views} | {"twin"}
    assert [view.name for view in chosen] == sorted(view.name for view in chosen)


def test_surplus_views_go_where_others_cover_the_picture(
    cameras: dict[str, scenes.Camera],
) -> None:
    """Of many views in the middle and one at each border, the borders are kept."""
    camera = cameras["plumb_bob"]
    middle = ideal(camera, 40, reach=(0.02, 0.02)).views  # type: ignore[arg-type]
    border = [dataclasses.replace(v, name=f"border{v.name}") for v in ideal(camera, 9).views]
    chosen, _ = select(middle + border, SIZE, most=12)
    names = {view.name for view in chosen}
    assert {v.name for v in border if not v.name.endswith("04")} <= names  # 04 is in the middle


def test_held_out_error_shows_a_model_with_too_many_coefficients(
    cameras: dict[str, scenes.Camera],
) -> None:
    views = ideal(cameras["plumb_bob"], 6, noise=0.5).views
    fit = MODELS["plumb_bob"].fit(views, SIZE[::-1])
    squares = [residuals(fit, v, p) ** 2 for v, p in zip(views, fit.poses, strict=True)]
    rms = float(np.sqrt(np.concatenate(squares).sum(axis=1).mean()))
    assert cross_validate("plumb_bob", views, SIZE[::-1]) > 1.02 * rms


@pytest.mark.parametrize("model", LENSES)
def test_the_pose_of_a_held_out_view_is_the_best_there_is(
    cameras: dict[str, scenes.Camera], model: str
) -> None:
    views = ideal(cameras[model], noise=0.3).views
    fit = MODELS[model].fit(views, SIZE[::-1])
    for view, fitted in zip(views, fit.poses, strict=True):
        found = (residuals(fit, view, find_pose(fit, view)) ** 2).sum()
        assert found <= (residuals(fit, view, fitted) ** 2).sum() * 1.001


def test_a_distortion_that_turns_back_within_the_picture_is_refused(
    cameras: dict[str, scenes.Camera],
) -> None:
    """A fisheye's rim is beyond what five coefficients can follow from views of its middle."""
    views = ideal(cameras["equidistant"], 20, noise=0.02, reach=(0.2, 0.15))  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="turns back on itself in .* of the picture"):
        calibrate(views, "plumb_bob")


def test_an_unknown_model_is_refused(cameras: dict[str, scenes.Camera]) -> None:
    with pytest.raises(InputError, match="'omni' is unknown; expected plumb_bob"):
        calibrate(ideal(cameras["plumb_bob"]), "omni")


def test_warnings_say_what_could_be_better(cameras: dict[str, scenes.Camera]) -> None:
    gathered = ideal(cameras["plumb_bob"], 9, noise=0.02, reach=(0.15, 0.1))  # type: ignore[arg-type]
    text = " ".join(calibrate(gathered).warnings)
    assert "9 views are few" in text and "take views near its edges" in text
    assert not calibrate(ideal(cameras["plumb_bob"], 20)).warnings


def test_straightness_of_a_straight_and_of_a_bent_line() -> None:
    cells = np.indices((3, 5))[::-1].reshape(2, -1).T
    pixels = cells.astype(np.float32) * 40 + 200
    bent = pixels.copy()
    bent[cells[:, 0] == 2, 1] += 3.0
    from edge_runtime.manifest import CameraSpec

    camera = CameraSpec(width=640, height=480, K=[500, 0, 320, 0, 500, 240, 0, 0, 1], D=[0.0] * 5)
    for where, least, most in ((pixels, 0, 1e-4), (bent, 0.8, 1.3)):
        view = View("v", cells, np.zeros((15, 3), np.float32), where, 1.0, b"")
        found = measure([view], Lens(camera, SIZE))
        assert least <= found.before <= most and found.lines == 8
        assert found.after == pytest.approx(found.before, abs=0.01)
