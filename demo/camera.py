"""A camera for the demo: plays images to the perception node and counts what comes back.

    python demo/camera.py --data out/demo/scenes/dataset.yaml:val --frames 40 --json ros.json

Configures and activates the node through its lifecycle services, publishes `image` as rgb8, and
matches every `detections` and `segmentation` to its frame by the header.
"""

from __future__ import annotations

import argparse
import array
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from edge_runtime.datasets import load_dataset
from edge_runtime.files import atomic_write_text


class Camera(Node):
    """Publishes frames and remembers when each was sent and answered (seconds, by stamp)."""

    def __init__(self) -> None:
        super().__init__("demo_camera")
        self.sent: dict[int, float] = {}
        self.answers: dict[str, dict[int, float]] = {"detections": {}, "segmentation": {}}
        self.foreign = 0
        self.boxes = 0
        self.images = self.create_publisher(Image, "image", qos_profile_sensor_data)
        self.create_subscription(
            Detection2DArray, "detections", self.on_detections, qos_profile_sensor_data
        )
        self.create_subscription(
            Image, "segmentation", self.on_segmentation, qos_profile_sensor_data
        )

    def on_detections(self, message: Any) -> None:
        self.boxes += len(message.detections)
        self.note("detections", message.header)

    def on_segmentation(self, message: Any) -> None:
        self.note("segmentation", message.header)

    def note(self, topic: str, header: Any) -> None:
        stamp = header.stamp.sec * 10**9 + header.stamp.nanosec
        if stamp in self.sent and header.frame_id == "demo_camera":
            self.answers[topic][stamp] = time.monotonic()
        else:
            self.foreign += 1

    def send(self, pixels: np.ndarray) -> None:
        """Publishes one uint8 [H, W, 3] RGB image."""
        message = Image()
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = "demo_camera"
        message.height, message.width = pixels.shape[:2]
        message.encoding, message.step = "rgb8", pixels.shape[1] * 3
        data = array.array("B")
        data.frombytes(memoryview(np.ascontiguousarray(pixels)).cast("B"))
        message.data = data
        stamp = message.header.stamp
        self.sent[stamp.sec * 10**9 + stamp.nanosec] = time.monotonic()
        self.images.publish(message)

    def spin_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def transition(self, node: str, which: int) -> None:
        """Asks a lifecycle node for a transition and waits until it is done."""
        client = self.create_client(ChangeState, f"{node}/change_state")
        if not client.wait_for_service(timeout_sec=60):
            raise SystemExit(f"error: no lifecycle node answers at {node}/change_state")
        request = ChangeState.Request(transition=Transition(id=which))
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self, future, timeout_sec=120)
        if not future.done() or not future.result().success:
            raise SystemExit(f"error: {node} refused transition {which}; see the node's log")

    def figures(self) -> dict[str, Any]:
        """Counts, and the delay from sending a frame to having its answer, in milliseconds."""
        result: dict[str, Any] = {
            "frames_sent": len(self.sent),
            "boxes": self.boxes,
            "answers_with_a_foreign_header": self.foreign,
        }
        for topic, times in self.answers.items():
            delays = [1e3 * (at - self.sent[stamp]) for stamp, at in times.items()]
            result[topic] = {"answers": len(times)}
            if delays:
                result[topic]["delay_ms_median"] = round(float(np.median(delays)), 2)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="dataset.yaml:SPLIT")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--rate", type=float, default=8.0, help="frames a second")
    parser.add_argument("--node", default="/perception", help="name of the lifecycle node")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    dataset = load_dataset(args.data)
    rclpy.init()
    camera = Camera()
    camera.transition(args.node, Transition.TRANSITION_CONFIGURE)
    camera.transition(args.node, Transition.TRANSITION_ACTIVATE)
    camera.spin_for(2.0)
    for index in range(args.frames):
        camera.send(dataset.read(index % len(dataset.samples)).image)
        camera.spin_for(1 / args.rate)
    camera.spin_for(2.0)
    figures = camera.figures()
    if args.json:
        atomic_write_text(args.json, json.dumps(figures, indent=2))
    print(json.dumps(figures))
    camera.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
