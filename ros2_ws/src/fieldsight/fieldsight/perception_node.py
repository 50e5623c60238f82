"""The perception node: images in; boxes, masks and statistics out. A managed (lifecycle) node.

python -m fieldsight.perception_node --ros-args -p bundle:=NAME.bundle -p autostart:=true
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_runtime import FieldsightError, Frame, InputError, Perception
from edge_runtime.telemetry import Health
from fieldsight import conversions, parameters
from fieldsight.adapter_listener import AdapterListener
from fieldsight.camera_info import CameraInfoListener
from fieldsight.lifecycle import guard_transitions
from fieldsight.monitor import MissedFrames, diagnostic_status
from fieldsight.outputs import Outputs
from fieldsight.process import run_node
from fieldsight.tags import digest_of

_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_QUIET_S = 5.0  # least seconds between two warnings of one kind


class PerceptionNode(LifecycleNode):
    """Runs a bundle on an image topic.

    Args:
        node_name: Default name.
        task: Default of the parameter `task`: "all" of the bundle's, or one of them.
        kwargs: For rclpy's LifecycleNode.
    """

    def __init__(self, node_name: str = "perception", task: str = "all", **kwargs: Any) -> None:
        super().__init__(node_name, **kwargs)
        guard_transitions(self)
        self._perception: Perception | None = None
        self._state = "unconfigured"
        self._health = Health()
        self._missed = MissedFrames()
        self._outputs: Outputs | None = None
        self._lens: CameraInfoListener | None = None
        self._subscriptions_held: dict[str, Any] = {}
        self._scratch: np.ndarray | None = None
        self._max_age_ns = 0
        self.add_on_set_parameters_callback(self._on_parameters)
        parameters.declare(self, task)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0, self._publish_diagnostics)

    def value(self, name: str) -> Any:
        """A parameter's value."""
        return self.get_parameter(name).value

    def start(self) -> bool:
        """Configure and activate; whether both succeeded."""
        done = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == done and self.trigger_activate() == done

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle, test it on its canary, and set up what is published."""
        try:
            perception = self._perception = self._open()
            report = perception.self_test()
        except Exception as error:
            known = isinstance(error, FieldsightError)
            self.get_logger().error(str(error) if known else traceback.format_exc())
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._health = Health()
        self._outputs = Outputs(self, perception)
        adapters = AdapterListener(self, perception, self._health)
        self._subscriptions_held["adapter"] = adapters.subscription
        if self.value("rectify") == "camera_info":
            self._lens = CameraInfoListener(self, perception, self._health)
            self._subscriptions_held["camera_info"] = self._lens.subscription
        elif self.value("rectify") == "none":
            perception.camera = None
        self._state = "inactive"
        self.get_logger().info(
            f"{perception.manifest.name} on {perception.engine.name}, {', '.join(perception.tasks)}"
            f"; self-test {report}"
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Publish the labels and subscribe to images."""
        result = super().on_activate(state)
        if self._outputs is not None:
            self._outputs.publish_label_info()
        self._missed = MissedFrames()
        topic, kind = "image", Image
        if self.value("image_transport") == "compressed":
            topic, kind = f"{self.resolve_topic_name('image')}/compressed", CompressedImage
        self._subscriptions_held["image"] = self.create_subscription(
            kind,
            topic,
            self._on_message,
            _NEWEST,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._state = "active"
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening to images; everything stays loaded."""
        self._unsubscribe("image")
        self._state = "inactive"
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine and all that belongs to the bundle."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything; the node ends."""
        self._release()
        self._state = "finalized"
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured again."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _open(self) -> Perception:
        bundle = self.value("bundle")
        if not bundle:
            raise InputError("parameter 'bundle' is empty; set it to the folder of a model bundle")
        task = self.value("task")
        self._max_age_ns = self.value("max_age_ms") * 1_000_000
        return Perception(
            bundle,
            backend=self.value("backend"),
            precision=self.value("precision"),
            score_threshold=self.value("score_threshold"),
            iou_threshold=self.value("iou_threshold"),
            tasks=None if task == "all" else [task],
            threads=self.value("threads") or None,
            max_detections=self.value("max_detections"),
        )

    def _unsubscribe(self, name: str) -> None:
        if (subscription := self._subscriptions_held.pop(name, None)) is not None:
            self.destroy_subscription(subscription)

    def _release(self) -> None:
        for name in list(self._subscriptions_held):
            self._unsubscribe(name)
        self._lens = None
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        self._scratch = None
        if self._perception is not None:
            self._perception.close()
            self._perception = None
        self._state = "unconfigured"

    # Parameters

    def _on_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        perception = self._perception
        result = parameters.check(changed, loaded=perception is not None)
        if result.successful and perception is not None and self._outputs is not None:
            for parameter in changed:
                if parameter.name == "max_age_ms":
                    self._max_age_ns = parameter.value * 1_000_000
                elif parameter.name in ("score_threshold", "iou_threshold", "max_detections"):
                    setattr(perception, parameter.name, parameter.value)
            if any(parameter.name == "score_threshold" for parameter in changed):
                self._outputs.publish_label_info()
        return result

    # Messages

    def _on_message(self, message: Image | CompressedImage, info: Mapping[str, int | None]) -> None:
        publishers = self._subscriptions_held["image"].get_publisher_count()
        if missed := self._missed.missed(info, publishers):
            self._health.counters.add("dropped_missed", missed)
        self.on_image(message)

    def on_image(self, message: Image | CompressedImage) -> None:
        """Answer one image, or count why not. Nothing that a message holds ends the node."""
        began = perf_counter()
        perception, outputs = self._perception, self._outputs
        if perception is None or outputs is None or self._is_stale(message.header):
            return
        try:
            if self._lens is not None:
                self._lens.require()
            frame = self._frame(message)
            result = perception(frame)
            outputs.publish(frame, result, message.header)
        except InputError as error:
            self._health.counters.add("skipped")
            self.get_logger().warning(f"image skipped: {error}", throttle_duration_sec=_QUIET_S)
        except Exception as error:
            self._health.error(f"{type(error).__name__}: {error}")
            self.get_logger().error(traceback.format_exc(), throttle_duration_sec=_QUIET_S)
        else:
            self._health.result((perf_counter() - began) * 1e3)

    def _is_stale(self, header: Header) -> bool:
        """Whether the frame is too old; one without a stamp has no age."""
        stamp = conversions.stamp_to_ns(header.stamp)
        if not self._max_age_ns or not stamp:
            return False
        age = self.get_clock().now().nanoseconds - stamp
        if age <= self._max_age_ns:
            return False
        count = self._health.counters.add("dropped_stale")
        self.get_logger().warning(
            f"image dropped, {age / 1e6:.0f} ms old ({count} so far); if all are, do the clocks "
            "agree? max_age_ms:=0 keeps them",
            throttle_duration_sec=_QUIET_S,
        )
        return True

    def _frame(self, message: Image | CompressedImage) -> Frame:
        if isinstance(message, CompressedImage):
            image = conversions.image_from_compressed(message)
        else:
            image = conversions.image_from_message(message, out=self._scratch)
            if message.encoding != "rgb8":
                self._scratch = image
        return Frame(image, conversions.stamp_to_ns(message.header.stamp), message.header.frame_id)

    def _publish_diagnostics(self) -> None:
        perception = self._perception
        engine = perception.engine.name if perception else "none"
        bundle = perception.manifest.name if perception else ""
        adapter = digest_of(perception.adapter) if perception else "none"
        images = self._subscriptions_held.get("image")
        status = diagnostic_status(
            self.get_fully_qualified_name(),
            bundle,
            self._state,
            engine,
            adapter,
            images.get_publisher_count() if images else 0,
            self._health,
        )
        header = Header(stamp=self.get_clock().now().to_msg())
        self._diagnostics.publish(DiagnosticArray(header=header, status=[status]))


def run(node_name: str, task: str) -> int:
    """Spin one node until it is interrupted; returns the exit code."""
    return run_node(lambda: PerceptionNode(node_name, task), _spin)


def _spin(node: PerceptionNode) -> int | None:
    if node.value("autostart") and not node.start():
        return 2
    rclpy.spin(node)
    return None


def main() -> None:
    """Both tasks from one forward pass, as far as the bundle has them."""
    sys.exit(run("perception", "all"))


def detector() -> None:
    """Detection only."""
    sys.exit(run("detector", "detection"))


def segmenter() -> None:
    """Segmentation only."""
    sys.exit(run("segmenter", "segmentation"))


if __name__ == "__main__":
    main()
