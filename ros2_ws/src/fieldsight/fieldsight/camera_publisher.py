"""Publish a camera, a video, or images from disk as a ROS image topic.

python -m fieldsight.camera_publisher --ros-args -p source:=images/val -p rate:=10.0
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from edge_runtime import InputError
from edge_runtime.sources import open_source
from fieldsight.conversions import image_to_message
from fieldsight.parameters import described
from fieldsight.process import run_node

_MUTUAL_S = 1.0  # from when we found a subscriber until it has surely found us


class CameraPublisher(Node):
    """Publishes `image` as rgb8 at a fixed rate, stamped with the time of publishing.

    Attributes:
        published: Frames published so far.
        done: Whether the source has ended.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("camera", **kwargs)
        declared = {
            "source": ("", described("image, image folder, video file or camera:INDEX")),
            "rate": (10.0, described("frames per second", 0.01, 1000.0)),
            "frame_id": ("camera", described("frame_id of every header")),
            "loop": (False, described("begin again when the source ends")),
            "wait_for": (0, described("subscribers to wait for before the first frame", 0, 100)),
        }
        for name, (default, descriptor) in declared.items():
            descriptor.read_only = True
            self.declare_parameter(name, default, descriptor)
        self.published = 0
        self._found_at: float | None = None
        self.done = False
        self._frame_id = self._value("frame_id")
        if not self._value("source"):
            raise InputError("parameter 'source' is empty; set it to a folder, video or camera:0")
        self._source = open_source(self._value("source"))
        self._images = self.create_publisher(
            Image,
            "image",
            QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self.create_timer(1 / self._value("rate"), self._publish_next)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _is_heard(self) -> bool:
        """Whether subscribers were found, and have had the time to find us.

        Each side finds the other by itself; what is sent on best effort before they have is lost.
        """
        wanted = self._value("wait_for")
        if self._images.get_subscription_count() < wanted:
            self._found_at = None
            return False
        if self._found_at is None:
            self._found_at = monotonic()
        return not wanted or monotonic() - self._found_at >= _MUTUAL_S

    def _publish_next(self) -> None:
        if self.published == 0 and not self._is_heard():
            return
        frame = next(self._source, None)
        if frame is None and self._value("loop"):
            self._source.close()
            self._source = open_source(self._value("source"))
            frame = next(self._source, None)
        if frame is None:
            self.done = True
            return
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        self._images.publish(image_to_message(frame.image, "rgb8", header))
        self.published += 1

    def close(self) -> None:
        """Release the source and report."""
        self._source.close()
        self.get_logger().info(
            f"{self._source.name}: {self.published} frames published, "
            f"{self._source.skipped} skipped"
        )


def main() -> None:
    """Publish until the source ends; exit code 2 if it cannot be read, 1 if it is lost."""
    sys.exit(run_node(CameraPublisher, _publish))


def _publish(node: CameraPublisher) -> None:
    while not node.done:
        rclpy.spin_once(node)
    rclpy.spin_once(node, timeout_sec=0.5)  # lets the last frame leave


if __name__ == "__main__":
    main()
