"""Messages to arrays and back."""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from edge_runtime import Detections, InputError, Result, Segmentation  # noqa: E402
from edge_runtime.manifest import ClassSpec  # noqa: E402
from fieldsight import conversions  # noqa: E402
from fieldsight.monitor import MissedFrames  # noqa: E402
from fieldsight.overlay import draw  # noqa: E402

pytestmark = pytest.mark.ros
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def message(pixels: np.ndarray, encoding: str, padding: int = 0, **fields: Any) -> Image:
    """An Image of uint8 [H, W(, channels)], with `padding` bytes after each row."""
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    step = rows.shape[1] + padding
    padded = np.full((len(rows), step), 77, np.uint8)
    padded[:, : rows.shape[1]] = rows
    given = {"height": len(pixels), "width": pixels.shape[1], "encoding": encoding, "step": step}
    return Image(**given | fields, data=array.array("B", padded.tobytes()))


ALPHA = np.full((6, 8, 1), 9, np.uint8)
GREY = np.repeat(RGB[..., :1], 3, axis=2)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels", "expected"),
    [
        ("rgb8", RGB, RGB),
        ("bgr8", RGB[..., ::-1], RGB),
        ("rgba8", np.concatenate([RGB, ALPHA], 2), RGB),
        ("bgra8", np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
        ("mono8", RGB[..., 0], GREY),
    ],
)
def test_encodings_become_rgb(
    encoding: str, pixels: np.ndarray, expected: np.ndarray, padding: int
) -> None:
    found = conversions.image_from_message(message(pixels, encoding, padding))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("pattern", "corner"), [("rggb", (0, 0)), ("bggr", (1, 1)), ("gbrg", (1, 0)), ("grbg", (0, 1))]
)
def test_bayer_patterns_keep_red_red(pattern: str, corner: tuple[int, int]) -> None:
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[corner[0] :: 2, corner[1] :: 2] = 200
    found = conversions.image_from_message(message(mosaic, f"bayer_{pattern}8"))
    assert (found[2:-2, 2:-2] == (200, 0, 0)).all()


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv"), ("yuv422", "uyvy")]
)
def test_yuv_pairs(encoding: str, order: str) -> None:
    # A red of BT.601 in limited range: Y 82, U 90, V 240.
    values = {"yuyv": (82, 90, 82, 240), "uyvy": (90, 82, 240, 82)}[order]
    pixels = np.tile(np.array(values, np.uint8), (4, 4)).reshape(4, 8, 2)
    found = conversions.image_from_message(message(pixels, encoding)).astype(int)
    assert np.abs(found - (255, 0, 0)).max() <= 3


def test_rgb_is_not_copied_and_cannot_be_written() -> None:
    given = message(RGB, "rgb8")
    found = conversions.image_from_message(given)
    assert np.shares_memory(found, np.frombuffer(given.data, np.uint8))
    assert not found.flags.writeable


def test_conversion_reuses_the_given_memory() -> None:
    out = np.empty_like(RGB)
    found = conversions.image_from_message(message(RGB[..., ::-1], "bgr8"), out=out)
    assert np.shares_memory(found, out)
    wrong = np.empty((3, 3, 3), np.uint8)
    found = conversions.image_from_message(message(RGB[..., ::-1], "bgr8"), out=wrong)
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"step": 23}, "step is 23, but 8 pixels of rgb8 take 24 bytes"),
        ({"step": 25}, "144 bytes, expected step 25 x height 6 = 150"),
        ({"height": 7}, "144 bytes, expected step 24 x height 7 = 168"),
        ({"height": 0}, "8x0 pixels"),
        ({"width": 0}, "0x6 pixels"),
        ({"encoding": "32FC1"}, "encoding '32FC1' is unknown; expected rgb8"),
        ({"encoding": ""}, "encoding '' is unknown"),
        ({"encoding": "yuyv", "width": 7}, "expected an even width"),
    ],
)
def test_impossible_images_are_refused(fields: dict, text: str) -> None:
    with pytest.raises(InputError, match="image") as caught:
        conversions.image_from_message(message(RGB, **{"encoding": "rgb8", **fields}))
    assert text in str(caught.value)


def test_tiny_bayer_image_is_refused_or_converted_but_never_raises_opencv_errors() -> None:
    try:
        found = conversions.image_from_message(message(RGB[:1, :1, 0], "bayer_rggb8"))
    except InputError:
        return
    assert found.shape == (1, 1, 3)


def test_compressed_images() -> None:
    png = cv2.imencode(".png", RGB[..., ::-1])[1].tobytes()
    found = conversions.image_from_compressed(CompressedImage(format="png", data=png))
    np.testing.assert_array_equal(found, RGB)
    for data in (b"", b"nonsense", png[:20]):
        with pytest.raises(InputError, match="cannot be decoded"):
            conversions.image_from_compressed(CompressedImage(format="png", data=data))


@pytest.mark.parametrize("image", [RGB, RGB[..., 0], RGB[::2, ::2]])
def test_images_go_out_as_they_are(image: np.ndarray) -> None:
    header = Header(frame_id="left")
    encoding = "rgb8" if image.ndim == 3 else "mono8"
    sent = conversions.image_to_message(image, encoding, header)
    assert sent.header == header
    assert len(sent.data) == sent.step * sent.height == image.size
    back = conversions.image_from_message(sent)
    np.testing.assert_array_equal(back, image if image.ndim == 3 else image[..., None].repeat(3, 2))


def test_detections_carry_names_and_centres() -> None:
    header = Header(frame_id="left")
    found = Detections(
        np.array([[1, 2, 5, 10]], np.float32), np.array([0.5], np.float32), np.array([1], np.int32)
    )
    sent = conversions.detections_to_message(found, ["a", "b"], header)
    (one,) = sent.detections
    assert sent.header == one.header == header
    assert (one.bbox.center.position.x, one.bbox.center.position.y) == (3, 6)
    assert (one.bbox.size_x, one.bbox.size_y) == (4, 8)
    assert one.results[0].hypothesis.class_id == "b"
    assert one.results[0].hypothesis.score == 0.5


def test_vectors_round_trip() -> None:
    values = np.arange(5, dtype=np.float32)
    sent = conversions.vector_to_message(values, "statistics")
    assert sent.layout.dim[0].size == 5
    np.testing.assert_array_equal(conversions.vector_from_message(sent), values)
    sent.layout.data_offset = 2
    np.testing.assert_array_equal(conversions.vector_from_message(sent), values[2:])


def test_overlay_leaves_the_frame_and_unknown_pixels_alone() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    image.flags.writeable = False
    mask = np.zeros((20, 20), np.uint8)
    mask[10:] = 255
    classes = [ClassSpec(name="floor", color=(255, 0, 0))]
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    scene = draw(image, Result(0, "", empty, Segmentation(mask), None), classes, classes)
    assert (scene[10:] == 100).all()
    assert (scene[:10, :, 0] > 100).all()
    boxed = Detections(
        np.array([[2, 2, 18, 18]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)
    )
    scene = draw(image, Result(0, "", boxed, None, None), classes, classes)
    assert tuple(scene[17, 18]) == (255, 0, 0)
    assert (image == 100).all()


def test_missed_frames_are_told_by_sequence_numbers() -> None:
    counter = MissedFrames()
    numbers = [5, 6, 9, 1, 2, None, 7, 8]
    found = [counter.missed({"publication_sequence_number": n}, 1) for n in numbers]
    assert found == [0, 0, 2, 0, 0, 0, 0, 0]
    assert counter.missed({"publication_sequence_number": 20}, publishers=2) == 0
