"""A client of the perception node: sends images, keeps answers, calls services."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from fieldsight.conversions import image_to_message, stamp_to_ns

PATIENCE_S = 60
Key = tuple[int, str]  # stamp in nanoseconds and frame id
Start = Callable[..., Any]  # of the fixtures `start` and `client`


def scene(seed: int = 0, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Noise, uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


class Client(Node):
    """Talks to the node `name` of a process.

    Attributes:
        detections: Answers by stamp and frame id.
        segmentation: Likewise.
        sent: Stamp and frame id of what was sent, in order.
        diagnostics: The newest values by key, with "level" and "message".
    """

    def __init__(self, process: Any, name: str) -> None:
        super().__init__("client", namespace=process.namespace)
        self.process = process
        self.target = f"{process.namespace}/{name}"
        self.detections: dict[Key, Detection2DArray] = {}
        self.segmentation: dict[Key, Image] = {}
        self.sent: list[Key] = []
        self.diagnostics: dict[str, Any] = {}
        self.reports = 0
        quality = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
        self.images = self.create_publisher(Image, "image", quality)
        for kind, topic in ((Detection2DArray, "detections"), (Image, "segmentation")):
            self.create_subscription(kind, topic, self._keeper(getattr(self, topic)), quality)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _keeper(self, kept: dict[Key, Any]) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            kept[stamp_to_ns(message.header.stamp), message.header.frame_id] = message

        return keep

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{self.target}: perception":
                self.reports += 1
                self.diagnostics = {value.key: value.value for value in status.values}
                self.diagnostics |= {"level": status.level, "message": status.message}

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Spin until something holds; fail with the node's output if it never does."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if self.process.process.poll() is not None or time.monotonic() > end:
                missing = [key for key in self.sent if not self.answered(key)]
                pytest.fail(
                    f"no {what}; sent {len(self.sent)}, not answered {missing}, diagnostics "
                    f"{self.diagnostics}; the node printed:\n{self.process.output}"
                )
            rclpy.spin_once(self, timeout_sec=0.1)

    def spin_for(self, seconds: float) -> None:
        """Spin for a time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def call(self, kind: Any, service: str, request: Any) -> Any:
        """Call one of the node's services and wait for the answer."""
        client = self.create_client(kind, f"{self.target}/{service}")
        try:
            self.until(client.service_is_ready, f"service {service}")
            future = client.call_async(request)
            self.until(future.done, f"answer of {service}")
            return future.result()
        finally:
            self.destroy_client(client)

    def transition(self, name: str) -> bool:
        """Ask for a lifecycle transition, such as "configure"; whether it succeeded."""
        which = Transition(id=getattr(Transition, f"TRANSITION_{name.upper()}"))
        return self.call(ChangeState, "change_state", ChangeState.Request(transition=which)).success

    def state(self) -> str:
        """Label of the lifecycle state."""
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def set(self, name: str, value: Any) -> Any:
        """Set one parameter; returns rcl_interfaces/SetParametersResult."""
        message = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[message])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def describe(self, name: str) -> Any:
        """A parameter's descriptor."""
        request = DescribeParameters.Request(names=[name])
        return self.call(DescribeParameters, "describe_parameters", request).descriptors[0]

    def connect(self) -> None:
        """Wait until the node hears us and we hear its answers.

        Each side finds the other by itself, and what is sent on best effort before is lost.
        """
        self.until(lambda: self.images.get_subscription_count(), "subscription to images")
        topics = [f"{self.process.namespace}/{name}" for name in ("detections", "segmentation")]
        self.until(lambda: any(self.count_publishers(t) for t in topics), "publisher of answers")
        before = self.reports
        self.until(lambda: self.reports > before and self.count("publishers"), "us in diagnostics")

    def activate(self) -> None:
        """Configure, activate, connect."""
        assert self.transition("configure") and self.transition("activate"), self.process.output
        self.connect()

    def send(self, image: np.ndarray, frame_id: str = "camera", age_s: float = 0.0) -> Key:
        """Publish uint8 [H, W, 3] RGB as rgb8; returns its stamp and frame id."""
        header = Header(frame_id=frame_id)
        now = self.get_clock().now().nanoseconds - int(age_s * 1e9)
        header.stamp.sec, header.stamp.nanosec = divmod(now, 10**9)
        self.images.publish(image_to_message(image, "rgb8", header))
        self.sent.append((now, frame_id))
        return self.sent[-1]

    def send_message(self, message: Image) -> Key:
        """Publish a message as it is, stamped now."""
        message.header.stamp = self.get_clock().now().to_msg()
        self.images.publish(message)
        return stamp_to_ns(message.header.stamp), message.header.frame_id

    def answered(self, key: Key) -> bool:
        """Whether both answers to a frame have come."""
        return key in self.detections and key in self.segmentation

    def ask(self, image: np.ndarray) -> Key:
        """Send an image once a second until one is answered; images are sent on best effort."""
        keys: list[Key] = []
        last = 0.0

        def found() -> bool:
            nonlocal last
            if time.monotonic() - last > 1:
                keys.append(self.send(image))
                last = time.monotonic()
            return any(map(self.answered, keys))

        self.until(found, "answer")
        return next(filter(self.answered, keys))

    def count(self, name: str) -> int:
        """A counter of the newest diagnostics; 0 before the first."""
        return int(self.diagnostics.get(name, 0))

    def next_report(self) -> dict[str, Any]:
        """The first diagnostics that were made after this call."""
        before = self.reports
        self.until(lambda: self.reports >= before + 2, "diagnostics")
        return self.diagnostics
