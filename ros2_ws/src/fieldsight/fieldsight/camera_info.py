"""The lens as the topic `camera_info` tells it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo

from edge_runtime import InputError, Perception
from edge_runtime.errors import explain_validation
from edge_runtime.manifest import CameraSpec
from edge_runtime.telemetry import Health

_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_QUIET_S = 5.0  # least seconds between two warnings


def camera_from_message(message: CameraInfo) -> CameraSpec:
    """The intrinsics of the raw image that a CameraInfo belongs to.

    A region of interest shifts the principal point; binning is a scale, which `Geometry` finds from
    the image's size. The stereo rotation `R` and the projection `P` play no part: results are in
    pixels of the raw image.

    Raises:
        InputError: The camera is not calibrated, or the numbers are none of a camera.
    """
    matrix, width, height = message.k.tolist(), message.width, message.height
    if not any(matrix):
        raise InputError(
            "K is all zero: the camera is not calibrated; calibrate it (fieldsight-calibrate "
            "camera) and give its driver the camera_info.yaml"
        )
    roi = message.roi
    if roi.width and roi.height:
        if roi.x_offset + roi.width > width or roi.y_offset + roi.height > height:
            raise InputError(
                f"the region of interest ({roi.width}x{roi.height} at {roi.x_offset}, "
                f"{roi.y_offset}) leaves the image of {width}x{height}"
            )
        matrix[2] -= roi.x_offset
        matrix[5] -= roi.y_offset
        width, height = roi.width, roi.height
    fields = {
        "width": width,
        "height": height,
        "model": message.distortion_model,
        "K": matrix,
        "D": list(message.d),
    }
    try:
        return CameraSpec.model_validate(fields)
    except ValidationError as error:
        raise InputError(explain_validation(error, CameraSpec, "camera_info")) from None


class CameraInfoListener:
    """Gives a perception the lens that `camera_info` tells; the last usable message holds.

    Args:
        node: Whose topic it is.
        perception: Whose camera is set.
        health: Counts "camera_info_updates" and "camera_info_rejected".
    """

    def __init__(self, node: Node, perception: Perception, health: Health) -> None:
        self._node, self._perception, self._health = node, perception, health
        self._last: tuple[Any, ...] | None = None
        perception.camera = None
        self.subscription = node.create_subscription(
            CameraInfo,
            "camera_info",
            self._on_message,
            _NEWEST,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def require(self) -> None:
        """Refuse to go on without a lens.

        Raises:
            InputError: No usable message has come yet.
        """
        if self._perception.camera is None:
            raise InputError(
                f"no usable camera_info yet on {self.subscription.topic_name}; is the camera "
                "calibrated and the topic right? rectify:=none does without"
            )

    def _on_message(self, message: CameraInfo) -> None:
        roi = message.roi
        region = roi.x_offset, roi.y_offset, roi.width, roi.height
        lens = message.distortion_model, message.k.tobytes(), bytes(message.d)
        told = message.width, message.height, *lens, region
        try:
            if told != self._last:
                self._perception.camera = camera_from_message(message)
                self._last = told
                self._health.counters.add("camera_info_updates")
                self._node.get_logger().info(
                    f"camera_info taken over: {message.distortion_model}, "
                    f"{message.width}x{message.height}"
                )
        except InputError as error:
            self._health.counters.add("camera_info_rejected")
            self._node.get_logger().warning(
                f"camera_info rejected: {error}", throttle_duration_sec=_QUIET_S
            )
