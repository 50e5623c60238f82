from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import InputError
from edge_runtime.geometry import PADDING, UNSEEN, Geometry
from edge_runtime.manifest import CameraSpec

sides = st.integers(16, 200)
PINHOLE = CameraSpec(
    width=320, height=240, K=[250, 0, 160, 0, 250, 120, 0, 0, 1], D=[-0.3, 0.1, 0, 0, 0]
)
FISHEYE = CameraSpec(
    width=320,
    height=240,
    model="equidistant",
    K=[150, 0, 160, 0, 150, 120, 0, 0, 1],
    D=[0.02, -0.01, 0.0, 0.0],
)


@settings(max_examples=50, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(["stretch", "letterbox"]))
def test_a_raw_box_is_found_again_from_the_network(
    raw_h: int, raw_w: int, net_h: int, net_w: int, resize: str
) -> None:
    geometry = Geometry((raw_h, raw_w), (net_h, net_w), resize)
    everything = geometry.boxes_to_raw(np.array([[-9, -9, 999, 999]], np.float32))
    np.testing.assert_allclose(everything, [[0, 0, raw_w, raw_h]], atol=1e-3)
    gap = np.array([net_w / raw_w, net_h / raw_h])
    scale = gap if resize == "stretch" else np.full(2, gap.min())
    offset = (np.array([net_w, net_h]) - scale * [raw_w, raw_h]) / 2
    raw = np.array([raw_w * 0.25, raw_h * 0.25, raw_w * 0.75, raw_h * 0.5])
    net = raw * np.tile(scale, 2) + np.tile(offset, 2)
    # whole pixels of the letterbox's bars: up to one network pixel off
    slack = 1e-3 if resize == "stretch" else 1.5 / scale.min()
    np.testing.assert_allclose(geometry.boxes_to_raw(net[None])[0], raw, atol=slack)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("raw", [(480, 640), (97, 211), (300, 100)])
def test_a_mask_comes_back_to_where_the_image_shows_it(raw: tuple[int, int], resize: str) -> None:
    image = np.zeros((*raw, 3), np.uint8)
    top, left = raw[0] // 4, raw[1] // 3
    image[top : 3 * top, left : 2 * left] = 255
    geometry = Geometry(raw, (240, 320), resize)
    mask = (geometry.to_network(image)[..., 0] > 127).astype(np.uint8)
    back = geometry.mask_to_raw(mask)
    assert back.shape == raw and back.dtype == np.uint8
    truth = image[..., 0] > 0
    assert (back[truth] == 1).mean() > 0.97
    assert (back[~truth] == 0).mean() > 0.97


def test_to_network_fills_the_given_array_and_pads_with_grey() -> None:
    out = np.zeros((1, 240, 320, 3), np.uint8)
    image = np.full((100, 100, 3), 7, np.uint8)
    assert Geometry((100, 100), (240, 320)).to_network(image, out[0]).base is not None
    assert (out == 7).all()
    Geometry((100, 100), (240, 320), "letterbox").to_network(image, out[0])
    assert (out[0, :, 40:280] == 7).all()
    assert (out[0, :, :40] == PADDING).all() and (out[0, :, 280:] == PADDING).all()


def test_strong_shrinking_averages() -> None:
    image = np.indices((400, 400)).sum(0).astype(np.uint8) % 2 * 255
    small = Geometry((400, 400), (100, 100)).to_network(np.repeat(image[..., None], 3, 2))
    assert abs(small.astype(int) - 127).max() <= 2


def test_shrinking_in_two_steps_equals_averaging_over_fractions() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 4)
    small = Geometry((480, 640), (224, 288)).to_network(image)
    average = cv2.resize(image, (288, 224), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - average).max() <= 3


def test_identity_leaves_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    np.testing.assert_array_equal(Geometry((24, 32), (24, 32)).to_network(image), image)


@pytest.mark.parametrize("camera", [PINHOLE, FISHEYE], ids=["pinhole", "fisheye"])
@pytest.mark.parametrize("raw", [(240, 320), (480, 640)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_lens_is_undone_and_redone(
    camera: CameraSpec, raw: tuple[int, int], resize: str
) -> None:
    factor = raw[0] // 240
    image = np.zeros((*raw, 3), np.uint8)
    x1, y1, x2, y2 = (value * factor for value in (60, 70, 120, 130))
    image[y1:y2, x1:x2] = 255
    geometry = Geometry(raw, (192, 288), resize, camera)
    seen = (geometry.to_network(image)[..., 0] > 127).astype(np.uint8)
    ys, xs = np.nonzero(seen)
    box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
    raw_box = geometry.boxes_to_raw(box)[0]
    # the box around the bent rectangle holds the rectangle, with a little room
    assert np.all(raw_box[:2] <= np.array([x1, y1]) + 2 * factor)
    assert np.all(raw_box[2:] >= np.array([x2, y2]) - 2 * factor)
    assert np.abs(raw_box - [x1, y1, x2, y2]).max() < 12 * factor
    back = geometry.mask_to_raw(seen)
    truth = image[..., 0] > 0
    known = back != UNSEEN
    assert known.mean() > 0.7
    overlap = ((back == 1) & truth).sum() / ((back == 1) | truth).sum()
    assert overlap > 0.93


def test_a_lens_without_distortion_equals_a_plain_resize() -> None:
    camera = CameraSpec(width=64, height=48, K=[60, 0, 31.5, 0, 60, 23.5, 0, 0, 1], D=[0.0] * 5)
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 3
    )
    with_lens = Geometry((48, 64), (48, 64), camera=camera).to_network(image)
    assert np.abs(with_lens.astype(int) - image)[2:-2, 2:-2].max() <= 6


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((10, 10, 3), np.float32), "float32"),
        (np.zeros((11, 10, 3), np.uint8), r"\(11, 10, 3\)"),
        (np.zeros((10, 10), np.uint8), r"\(10, 10\)"),
    ],
)
def test_another_image_than_expected_is_refused(image: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Geometry((10, 10), (8, 8)).to_network(image)


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(InputError, match="'crop' is unknown"):
        Geometry((10, 10), (8, 8), "crop")
    with pytest.raises(InputError, match="positive"):
        Geometry((0, 10), (8, 8))
    with pytest.raises(InputError, match="aspect differs"):
        Geometry((240, 240), (8, 8), camera=PINHOLE)
