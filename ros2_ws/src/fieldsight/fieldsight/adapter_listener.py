"""The adapter as the topic `~/adapter` gives it to a perception."""

from __future__ import annotations

from rclpy.node import Node
from std_msgs.msg import Float32MultiArray

from edge_runtime import InputError, Perception
from edge_runtime.telemetry import Health
from fieldsight.outputs import LATCHED
from fieldsight.tags import model_of, read_adapter

_QUIET_S = 5.0  # least seconds between two messages of one kind


class AdapterListener:
    """Feeds a perception the adapters it is sent; the last usable one holds.

    Whoever finds them may be absent, killed or stalled: perception goes on with what it has.

    Args:
        node: Whose topic it is.
        perception: Whose adapter is set.
        health: Counts "adapter_updates" and "adapter_rejected".
    """

    def __init__(self, node: Node, perception: Perception, health: Health) -> None:
        self._node, self._perception, self._health = node, perception, health
        self._model = model_of(perception.bundle)
        self.subscription = node.create_subscription(
            Float32MultiArray, "~/adapter", self._on_message, LATCHED
        )

    def _on_message(self, message: Float32MultiArray) -> None:
        logger = self._node.get_logger()
        try:
            size = self._perception.manifest.adapter_size
            self._perception.adapter = read_adapter(message, self._model, size)
        except InputError as error:
            self._health.counters.add("adapter_rejected")
            logger.warning(f"adapter rejected: {error}", throttle_duration_sec=_QUIET_S)
        else:
            count = self._health.counters.add("adapter_updates")
            logger.info(f"adapter taken over ({count} so far)", throttle_duration_sec=_QUIET_S)
