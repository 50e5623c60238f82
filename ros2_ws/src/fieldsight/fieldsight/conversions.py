"""Between ROS messages and arrays: no copy in where the pixels are RGB already, one copy out."""

from __future__ import annotations

import array
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float32MultiArray, Header, MultiArrayDimension
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
)

from edge_runtime import Detections, InputError
from edge_runtime.manifest import ClassSpec


@dataclass(frozen=True, slots=True)
class _Encoding:
    """Bytes per pixel and OpenCV's conversion to RGB; `even` where pixels come in pairs."""

    channels: int
    code: int | None
    even: bool = False


# OpenCV names a Bayer pattern by its second row's second and third pixel, ROS by its corner.
_ENCODINGS = {
    "rgb8": _Encoding(3, None),
    "bgr8": _Encoding(3, cv2.COLOR_BGR2RGB),
    "mono8": _Encoding(1, cv2.COLOR_GRAY2RGB),
    "rgba8": _Encoding(4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, cv2.COLOR_BGRA2RGB),
    "yuv422_yuy2": _Encoding(2, cv2.COLOR_YUV2RGB_YUY2, even=True),
    "yuyv": _Encoding(2, cv2.COLOR_YUV2RGB_YUY2, even=True),
    "yuv422": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY, even=True),
    "uyvy": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY, even=True),
    "bayer_rggb8": _Encoding(1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _Encoding(1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _Encoding(1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _Encoding(1, cv2.COLOR_BayerGB2RGB),
}
ENCODINGS = tuple(_ENCODINGS)


def image_from_message(message: Image, out: np.ndarray | None = None) -> np.ndarray:
    """The pixels of an Image message as RGB.

    Args:
        message: Its `step` may exceed the row's pixels.
        out: uint8 [H, W, 3] to convert into where a conversion is needed and the size fits.

    Returns:
        uint8 [H, W, 3]. For rgb8 a view of the message's memory, valid as long as the message.

    Raises:
        InputError: Size, step, length or encoding cannot be right.
    """
    height, width, step = message.height, message.width, message.step
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        raise InputError(
            f"image encoding '{message.encoding}' is unknown; expected {', '.join(ENCODINGS)}"
        )
    if height == 0 or width == 0:
        raise InputError(f"image is {width}x{height} pixels; expected at least 1x1")
    if encoding.even and width % 2:
        raise InputError(f"{message.encoding} image is {width} wide; expected an even width")
    row = width * encoding.channels
    if step < row:
        raise InputError(
            f"image step is {step}, but {width} pixels of {message.encoding} take {row} bytes"
        )
    if len(message.data) != step * height:
        raise InputError(
            f"image has {len(message.data)} bytes, expected step {step} x height {height} = "
            f"{step * height}"
        )
    pixels = np.frombuffer(message.data, np.uint8).reshape(height, step)[:, :row]
    strides = (step, encoding.channels, 1)
    shape = (height, width, encoding.channels)
    pixels = np.lib.stride_tricks.as_strided(pixels, shape, strides, writeable=False)
    return _to_rgb(pixels, encoding, out)


def _to_rgb(pixels: np.ndarray, encoding: _Encoding, out: np.ndarray | None) -> np.ndarray:
    if encoding.code is None:
        return pixels
    if out is not None and out.shape != (*pixels.shape[:2], 3):
        out = None
    if encoding.channels == 1:
        pixels = pixels[:, :, 0]
    try:
        return cv2.cvtColor(pixels, encoding.code, dst=out)
    except cv2.error as error:
        raise InputError(f"image {pixels.shape} cannot be converted to RGB: {error}") from None


def image_from_compressed(message: CompressedImage) -> np.ndarray:
    """Decode a CompressedImage (JPEG, PNG and what else OpenCV reads).

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        InputError: The data are empty or no image.
    """
    data = np.frombuffer(message.data, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise InputError(
            f"compressed image ('{message.format}', {len(data)} bytes) cannot be decoded; "
            "expected JPEG or PNG"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def image_to_message(image: np.ndarray, encoding: str, header: Header) -> Image:
    """An Image message with a copy of the pixels.

    Args:
        image: uint8 [H, W] or [H, W, channels], as `encoding` says ("mono8", "rgb8", ...).
        encoding: Name from sensor_msgs/image_encodings.
        header: Used as it is.
    """
    image = np.ascontiguousarray(image)
    # An array.array is taken over as it is; anything else rclpy checks byte by byte.
    data = array.array("B")
    data.frombytes(image.data.cast("B"))
    height, width = image.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding)
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = image.nbytes // height
    message.data = data
    return message


def detections_to_message(
    detections: Detections, names: Sequence[str], header: Header
) -> Detection2DArray:
    """Boxes as vision_msgs: `class_id` is the class's name, every header the image's.

    Args:
        detections: Boxes in raw pixels.
        names: Class names by label.
        header: That of the image.
    """
    found = []
    boxes = detections.boxes.astype(np.float64)
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()
    sizes = (boxes[:, 2:] - boxes[:, :2]).tolist()
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    for center, size, label, score in zip(centers, sizes, labels, scores, strict=True):
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = names[label]
        hypothesis.hypothesis.score = score
        detection = Detection2D(header=header, results=[hypothesis])
        position = detection.bbox.center.position
        position.x, position.y = center
        detection.bbox.size_x, detection.bbox.size_y = size
        found.append(detection)
    return Detection2DArray(header=header, detections=found)


def detections_from_message(message: Detection2DArray, names: Sequence[str]) -> Detections:
    """The inverse of `detections_to_message`.

    Raises:
        InputError: A class that is not in `names`, or a detection without one.
    """
    labels = {name: label for label, name in enumerate(names)}
    boxes, scores, classes = [], [], []
    for detection in message.detections:
        hypothesis = detection.results[0].hypothesis if detection.results else None
        if hypothesis is None or hypothesis.class_id not in labels:
            found = None if hypothesis is None else hypothesis.class_id
            raise InputError(f"detection of class {found!r:.40}; expected one of {list(names)}")
        centre, box = detection.bbox.center.position, detection.bbox
        half_x, half_y = box.size_x / 2, box.size_y / 2
        boxes.append([centre.x - half_x, centre.y - half_y, centre.x + half_x, centre.y + half_y])
        scores.append(hypothesis.score)
        classes.append(labels[hypothesis.class_id])
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int32),
    )


def mask_from_message(message: Image) -> np.ndarray:
    """The mask of a mono8 Image, uint8 [H, W].

    Raises:
        InputError: It has another encoding, or a size that cannot be right.
    """
    if message.encoding != "mono8":
        raise InputError(f"mask of encoding '{message.encoding}', expected mono8")
    height, width, step = message.height, message.width, message.step
    if not height or step < width or len(message.data) != step * height:
        raise InputError(f"mask of {width}x{height} with step {step} has {len(message.data)} bytes")
    return np.frombuffer(message.data, np.uint8).reshape(height, step)[:, :width]


def label_info_message(classes: Sequence[ClassSpec], threshold: float, header: Header) -> LabelInfo:
    """Class names by label or mask value, and the score below which boxes are dropped."""
    named = [VisionClass(class_id=i, class_name=spec.name) for i, spec in enumerate(classes)]
    return LabelInfo(header=header, class_map=named, threshold=float(threshold))


def vector_to_message(values: np.ndarray, label: str) -> Float32MultiArray:
    """A float32 vector [A] as a one-dimensional Float32MultiArray."""
    message = Float32MultiArray()
    size = len(values)
    message.layout.dim = [MultiArrayDimension(label=label, size=size, stride=size)]
    data = array.array("f")
    data.frombytes(np.ascontiguousarray(values, np.float32).tobytes())
    message.data = data
    return message


def vector_from_message(message: Float32MultiArray) -> np.ndarray:
    """float32 [A], a copy of the message's data from its offset on."""
    return np.array(message.data, np.float32)[message.layout.data_offset :]


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds since the epoch of the stamp's clock."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec
