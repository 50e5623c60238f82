"""Frames together with what perception made of them, at a low rate and at little cost.

An image and its results are messages of their own that come one after the other; they belong
together if stamp and frame id agree. Between two frames that are wanted nothing is taken from the
middleware at all: its queues hold the newest few, so that a camera's full rate costs no time here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float32MultiArray
from vision_msgs.msg import Detection2DArray

from edge_runtime import InputError
from edge_runtime.telemetry import Counters
from fieldsight.conversions import stamp_to_ns
from fieldsight.tags import Statistics, read_statistics

Key = tuple[int, str]  # stamp in nanoseconds and frame id
# Best effort: perception never waits for whoever listens here.
_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_FEW = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
_QUIET_S = 5.0
RESULTS = {"detection": ("detections", Detection2DArray), "segmentation": ("segmentation", Image)}


class Matcher:
    """Collects the parts of a few frames until one frame has all of them.

    Args:
        parts: Names of the parts that a frame has.
        most: Frames that are collected at once; the oldest goes when another one begins.
    """

    def __init__(self, parts: set[str], most: int = 8) -> None:
        self.parts, self.most = frozenset(parts), most
        self._frames: OrderedDict[Key, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, key: Key, part: str, value: Any) -> dict[str, Any] | None:
        """Add one part of a frame; all of its parts once they are complete, and then it is gone."""
        found = self._frames.setdefault(key, {})
        found[part] = value
        if found.keys() >= self.parts:
            return self._frames.pop(key)
        while len(self._frames) > self.most:
            self._frames.popitem(last=False)
        return None

    def clear(self) -> None:
        """Forget all frames."""
        self._frames.clear()


class _Gate(ReentrantCallbackGroup):
    """Subscriptions whose messages stay in the middleware's queues while it is closed."""

    open = False

    def can_execute(self, entity: Any) -> bool:
        return self.open


class Intake:
    """Subscribes to images and results, and hands on one whole frame each time it is asked.

    Args:
        node: Whose topics they are.
        tasks: Of which results there are.
        compressed: Whether to take `image/compressed` in place of `image`.
        model: Name of the network that the statistics must be of.
        size: How many values they must have.
        wanted: Whether a frame perceived under the adapter of this name is wanted.
        done: Called with the parts "image", "statistics" and those of `RESULTS`.
        counters: Counts "rejected", messages that cannot be right; "other_adapter", statistics
            that are not wanted; "unstamped", messages without a stamp.
    """

    def __init__(
        self,
        node: Node,
        tasks: list[str],
        compressed: bool,
        model: str,
        size: int,
        wanted: Callable[[str], bool],
        done: Callable[[dict[str, Any]], None],
        counters: Counters,
    ) -> None:
        self._node, self._model, self._size = node, model, size
        self._wanted, self._done, self._counters = wanted, done, counters
        self._gate = _Gate()
        topics = dict(RESULTS[task] for task in tasks)
        self._matcher = Matcher({"image", "statistics", *topics})
        kind, topic = Image, "image"
        if compressed:
            kind, topic = CompressedImage, f"{node.resolve_topic_name('image')}/compressed"
        self._subscribe(kind, topic, "image", _NEWEST)
        for name, kind in topics.items():
            self._subscribe(kind, name, name, _FEW)
        node.create_subscription(
            Float32MultiArray, "statistics", self._on_statistics, _FEW, callback_group=self._gate
        )

    def ask(self) -> None:
        """Hand on the next whole frame; asking again before it came changes nothing."""
        self._gate.open = True

    def pause(self) -> None:
        """Take nothing until asked again."""
        self._gate.open = False
        self._matcher.clear()

    def _subscribe(self, kind: Any, topic: str, part: str, quality: QoSProfile) -> None:
        def take(message: Any) -> None:
            header = message.header
            self._add((stamp_to_ns(header.stamp), header.frame_id), part, message)

        self._node.create_subscription(kind, topic, take, quality, callback_group=self._gate)

    def _on_statistics(self, message: Float32MultiArray) -> None:
        try:
            found = read_statistics(message, self._model, self._size)
        except InputError as error:
            self._counters.add("rejected")
            self._node.get_logger().warning(
                f"statistics rejected: {error}", throttle_duration_sec=_QUIET_S
            )
            return
        if self._wanted(found.adapter):
            self._add((found.stamp_ns, found.frame_id), "statistics", found)
        else:
            self._counters.add("other_adapter")

    def _add(self, key: Key, part: str, value: Image | Detection2DArray | Statistics) -> None:
        if not key[0]:  # nothing tells such frames apart
            self._counters.add("unstamped")
            return
        if not self._gate.open:
            return
        parts = self._matcher.add(key, part, value)
        if parts is not None:
            self.pause()
            self._done(parts)
