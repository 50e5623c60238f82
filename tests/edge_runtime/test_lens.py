"""The lens models against their formulas, and the geometry that resizes and undistorts in one."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from edge_runtime.errors import InputError
from edge_runtime.geometry import UNSEEN, Geometry
from edge_runtime.lens import WIDEST_VIEW_DEG, Lens
from edge_runtime.manifest import CameraSpec

SIZE = (480, 640)
CAMERAS = {
    "plumb_bob": CameraSpec(
        width=640,
        height=480,
        K=[533, 0, 342, 0, 531, 234, 0, 0, 1],
        D=[-0.29, 0.08, 0.001, -0.002, 0.01],
    ),
    "rational_polynomial": CameraSpec(
        width=640,
        height=480,
        model="rational_polynomial",
        K=[350, 0, 322, 0, 352, 238, 0, 0, 1],
        D=[0.5, 0.1, 0.001, 0.001, 0.01, 0.8, 0.3, 0.03],
    ),
    "equidistant": CameraSpec(
        width=640,
        height=480,
        model="equidistant",
        K=[300, 0, 322, 0, 301, 238, 0, 0, 1],
        D=[0.02, -0.01, 0.002, 0.0],
    ),
}
WIDE = CameraSpec(
    width=640, height=480, model="equidistant", K=[160, 0, 320, 0, 160, 240, 0, 0, 1], D=[0.0] * 4
)
each_camera = pytest.mark.parametrize("camera", CAMERAS.values(), ids=list(CAMERAS))


def formula(camera: CameraSpec, rays: np.ndarray) -> np.ndarray:
    """Rays x/z, y/z [N, 2] to continuous raw pixels, as the models are defined."""
    r = np.linalg.norm(rays, axis=1, keepdims=True)
    if camera.model == "equidistant":
        t = np.arctan(r)
        bent = t * (1 + sum(k * t ** (2 * i + 2) for i, k in enumerate(camera.D)))
        rays = rays * bent / r
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*camera.D, 0, 0, 0)[:8]
        radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
        x, y = rays.T
        shift = [
            2 * p1 * x * y + p2 * (r[:, 0] ** 2 + 2 * x**2),
            p1 * (r[:, 0] ** 2 + 2 * y**2) + 2 * p2 * x * y,
        ]
        rays = rays * radial + np.stack(shift, 1)
    return rays * [camera.K[0], camera.K[4]] + [camera.K[2], camera.K[5]] + 0.5


@each_camera
def test_a_lens_is_what_its_model_says_and_can_be_undone(camera: CameraSpec) -> None:
    lens = Lens(camera, SIZE)
    points = np.random.default_rng(0).uniform([1, 1], [639, 479], (500, 2))
    rays = (points - 0.5 - lens.view[:2, 2]) / np.diag(lens.view)[:2]
    np.testing.assert_allclose(lens.distort(points), formula(camera, rays), atol=1e-6)
    np.testing.assert_allclose(lens.undistort(lens.distort(points)), points, atol=1e-3)


@each_camera
@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_intrinsics_scale_with_the_resolution(camera: CameraSpec, factor: float) -> None:
    """A continuous pixel of an image scaled by 2 lies at twice its place: no half pixel is lost."""
    size = round(SIZE[0] * factor), round(SIZE[1] * factor)
    scaled = Lens(camera, size)
    points = np.random.default_rng(0).uniform([9, 9], [631, 471], (50, 2))
    rays = (points - 0.5 - Lens(camera, SIZE).view[:2, 2]) / np.diag(Lens(camera, SIZE).view)[:2]
    centre, focal = scaled.view[:2, 2], np.diag(scaled.view)[:2]
    raw = scaled.distort(rays * focal + centre + 0.5)
    np.testing.assert_allclose(raw, formula(camera, rays) * factor, atol=1e-6)


@functools.cache
def bent_line(name: str, vertical: bool) -> np.ndarray:
    """Raw image uint8 of a scene that is white on one side of a straight edge near its border."""
    lens = Lens(CAMERAS[name], SIZE)
    x, y = np.meshgrid(np.arange(640) + 0.5, np.arange(480) + 0.5)
    seen = lens.undistort(np.stack([x, y], -1))
    at = seen[..., 0] - 60 if vertical else seen[..., 1] - 50
    grey = np.clip(np.nan_to_num(at, nan=-9) * 0.1 + 0.5, 0, 1) * 255
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)


def edge(image: np.ndarray, vertical: bool) -> np.ndarray:
    """Where each row (or column) turns from dark to bright, in pixels; its ends left out."""
    rows = image[..., 0] if vertical else image[..., 0].T
    rows = rows[10:-10].astype(float)
    at = np.argmax(rows > 127, axis=1)
    before, after = rows[np.arange(len(rows)), at - 1], rows[np.arange(len(rows)), at]
    return at + 0.5 - (after - 127.5) / (after - before)


@each_camera
@pytest.mark.parametrize("vertical", [True, False], ids=["vertical", "horizontal"])
@pytest.mark.parametrize("net", [(480, 640), (240, 320), (200, 288)])
def test_a_straight_edge_is_straight_for_the_network(
    camera: CameraSpec, vertical: bool, net: tuple[int, int]
) -> None:
    raw = bent_line(camera.model, vertical)
    after = edge(Geometry(SIZE, net, camera=camera).to_network(raw), vertical)
    assert after.std() < 0.25  # every row crosses at the same place
    scale = net[1] / 640 if vertical else net[0] / 480
    assert after.mean() == pytest.approx((60 if vertical else 50) * scale, abs=0.35)
    assert edge(raw, vertical).std() > 3


@each_camera
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_boxes_and_masks_come_back_to_where_the_raw_image_shows_them(
    camera: CameraSpec, resize: str
) -> None:
    raw = np.zeros((*SIZE, 3), np.uint8)
    cv2.circle(raw, (150, 120), 50, (255, 255, 255), -1)
    geometry = Geometry(SIZE, (224, 352), resize, camera)
    seen = geometry.to_network(raw)[..., 0] > 127
    ys, xs = np.nonzero(seen)
    box = geometry.boxes_to_raw(np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]))[0]
    assert np.all(box[:2] <= [103, 73]) and np.all(box[2:] >= [197, 167])
    assert np.abs(box - [100, 70, 201, 171]).max() < 14  # the box's bent corners stand out
    back = geometry.mask_to_raw(seen.astype(np.uint8))
    truth = raw[..., 0] > 0
    assert ((back == 1) & truth).sum() / ((back == 1) | truth).sum() > 0.93


@each_camera
def test_what_the_network_cannot_see_is_unseen(camera: CameraSpec) -> None:
    """Also under a letterbox, whose bars belong to no raw pixel."""
    for resize in ("stretch", "letterbox"):
        geometry = Geometry(SIZE, (320, 320), resize, camera)
        mask = np.full((160, 160), 7, np.uint8)
        if resize == "letterbox":
            mask[:20] = mask[-20:] = 9  # classes within the bars
        back = geometry.mask_to_raw(mask)
        x, y = np.meshgrid(np.arange(640) + 0.5, np.arange(480) + 0.5)
        seen = Lens(camera, SIZE).undistort(np.stack([x, y], -1))
        outside = ~np.all((seen >= 0) & (seen < [640, 480]), axis=-1)
        assert (back[outside] == UNSEEN).all() and (back[~outside] == 7).all()
        assert 0 < outside.mean() < 0.35


def test_a_strong_shrink_through_a_lens_averages() -> None:
    raw = np.repeat((np.indices((480, 640)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    for net in ((120, 160), (100, 190)):
        small = Geometry(SIZE, net, camera=CAMERAS["plumb_bob"]).to_network(raw)
        assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 40
        assert small[2:-2, 2:-2].std() < 12


def test_a_view_of_more_than_half_a_sphere_is_cut_to_what_a_flat_picture_can_hold() -> None:
    lens = Lens(WIDE, SIZE)  # 229 degrees across
    assert lens.view[0, 0] == pytest.approx(320 / np.tan(np.radians(WIDEST_VIEW_DEG / 2)))
    geometry = Geometry(SIZE, (240, 320), camera=WIDE)
    back = geometry.mask_to_raw(np.zeros((120, 160), np.uint8))
    assert (back[240] == UNSEEN).any() and back[240, 320] == 0 and back[5, 5] == UNSEEN
    boxes = geometry.boxes_to_raw(np.array([[0, 0, 320, 240], [-50, -50, 900, 900]], np.float32))
    assert np.isfinite(boxes).all()
    np.testing.assert_allclose(boxes[0], boxes[1])


def test_a_camera_without_coefficients_has_no_distortion() -> None:
    for model in ("plumb_bob", "rational_polynomial"):
        camera = CameraSpec(
            width=640, height=480, model=model, K=[500, 0, 320, 0, 500, 240, 0, 0, 1], D=[]
        )
        points = np.array([[10.0, 20.0], [600.0, 400.0]])
        lens = Lens(camera, SIZE)
        rays = (points - 0.5 - lens.view[:2, 2]) / np.diag(lens.view)[:2]
        np.testing.assert_allclose(lens.distort(points), rays * 500 + [320.5, 240.5], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"K": [0, 0, 0] * 3}, "positive focal lengths"),
        ({"K": [500, 0, 320, 0, 500, 240, 0, 0, 2]}, "last row"),
        ({"K": [float("nan"), 0, 320, 0, 500, 240, 0, 0, 1]}, "finite"),
        ({"D": [0.0] * 3}, "plumb_bob takes 0 or 4 or 5"),
        ({"D": [float("inf")] * 5}, "finite"),
        ({"model": "equidistant"}, "D has 5 coefficients; equidistant takes 0 or 4"),
        ({"model": "radial"}, "plumb_bob"),
    ],
)
def test_impossible_intrinsics_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CameraSpec.model_validate({**CAMERAS["plumb_bob"].model_dump(), **changes})


@pytest.mark.parametrize(
    ("model", "focal", "coefficients"),
    [
        ("equidistant", 500.0, [1e300] * 4),
        ("plumb_bob", 500.0, [1e300] * 5),
        ("plumb_bob", 1e-300, [0.1] * 5),
        ("rational_polynomial", 500.0, [-1e12, 0, 0, 0, 0, -1, 0, 0]),
    ],
)
def test_intrinsics_that_leave_no_picture_are_refused(
    model: str, focal: float, coefficients: list[float]
) -> None:
    fields = {"width": 640, "height": 480, "model": model, "D": coefficients}
    camera = CameraSpec(**fields, K=[focal, 0, 1e9, 0, focal, 240, 0, 0, 1])
    with pytest.raises(InputError, match="calibrate it again"):
        Geometry(SIZE, (240, 320), camera=camera)
