"""What a perception node publishes of its results."""

from __future__ import annotations

from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Float32MultiArray, Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_runtime import Frame, Perception, Result
from fieldsight import conversions
from fieldsight.overlay import draw
from fieldsight.tags import digest_of, model_of, statistics_message

LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
_RESULTS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)  # serves both kinds


class Outputs:
    """The lifecycle publishers of one configured node.

    Args:
        node: Whose publishers they are.
        perception: Its tasks decide which topics there are.
    """

    def __init__(self, node: LifecycleNode, perception: Perception) -> None:
        self._node = node
        self._perception = perception
        self._model = model_of(perception.bundle)
        kinds: dict[str, tuple[Any, QoSProfile]] = {
            "label_info": (LabelInfo, LATCHED),
            "statistics": (Float32MultiArray, _RESULTS),
            "overlay": (Image, _RESULTS),
        }
        self._classes = {task: perception.classes(task) for task in perception.tasks}
        self._names = [spec.name for spec in self._classes.get("detection", [])]
        if "detection" in perception.tasks:
            kinds["detections"] = Detection2DArray, _RESULTS
        if "segmentation" in perception.tasks:
            kinds["segmentation"] = Image, _RESULTS
        if len(perception.tasks) > 1:
            kinds["detections/label_info"] = LabelInfo, LATCHED
        self._publishers = {
            topic: node.create_lifecycle_publisher(
                kind,
                topic,
                qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for topic, (kind, qos) in kinds.items()
        }

    def publish(self, frame: Frame, result: Result, header: Header) -> None:
        """Publish one frame's results under the header of its image."""
        publishers = self._publishers
        if result.detections is not None:
            message = conversions.detections_to_message(result.detections, self._names, header)
            publishers["detections"].publish(message)
        if result.segmentation is not None:
            message = conversions.image_to_message(result.segmentation.mask, "mono8", header)
            publishers["segmentation"].publish(message)
        if result.statistics is not None:
            adapter = digest_of(self._perception.adapter)
            message = statistics_message(result, self._model, adapter)
            publishers["statistics"].publish(message)
        if publishers["overlay"].get_subscription_count() > 0:
            boxes, masks = (self._classes.get(task, []) for task in ("detection", "segmentation"))
            scene = draw(frame.image, result, boxes, masks)
            publishers["overlay"].publish(conversions.image_to_message(scene, "rgb8", header))

    def publish_label_info(self) -> None:
        """`label_info` has the mask's classes if there is one; boxes carry their class names."""
        header = Header(stamp=self._node.get_clock().now().to_msg())
        threshold = self._perception.score_threshold
        task = "segmentation" if "segmentation" in self._classes else "detection"
        for topic, name in (("label_info", task), ("detections/label_info", "detection")):
            if topic in self._publishers:
                message = conversions.label_info_message(self._classes[name], threshold, header)
                self._publishers[topic].publish(message)

    def destroy(self) -> None:
        """Destroy all publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()
