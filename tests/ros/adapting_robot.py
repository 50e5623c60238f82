"""A robot of two processes, perception and adapter, and a client that drives it over DDS."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from ros_client import Client, Key
from std_msgs.msg import Float32MultiArray
from std_srvs.srv import SetBool, Trigger

from fieldsight.conversions import mask_from_message, stamp_to_ns
from fieldsight.outputs import LATCHED

sys.path.insert(0, str(Path(__file__).parents[1] / "edge_runtime" / "adaptation"))
from colours import scene  # noqa: E402

HOME, AWAY = (1.0, 1.0, 1.0), (1.0, 0.8, 0.6)  # white and yellow light


class AdaptingRobot(Client):
    """Sends coloured scenes to the perception of one namespace, and controls the adapter node.

    Attributes:
        adapter: The adapter node's process, and `start_adapter` starts another; both to be set.
        given: Messages on the perception's topic `~/adapter`.
        learning: The newest values of the adapter's diagnostics, with "level" and "message".
        light: Gain of red, green and blue: what has changed in the world.
    """

    def __init__(self, process: Any, name: str) -> None:
        super().__init__(process, name)
        self.adapter: Any = None
        self.start_adapter: Callable[..., Any] | None = None
        self.given: list[Float32MultiArray] = []
        self.learning: dict[str, Any] = {}
        self.light = HOME
        self.statistics: list[Float32MultiArray] = []
        self._index = 0
        self._made = {"perception": 0, "adapter": 0}
        topic = f"{self.target}/adapter"
        self.create_subscription(Float32MultiArray, topic, self.given.append, LATCHED)
        self.create_subscription(Float32MultiArray, "statistics", self.statistics.append, 10)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        before = self.reports
        super()._on_diagnostics(message)
        made = stamp_to_ns(message.header.stamp)
        self._made["perception"] = made if self.reports > before else self._made["perception"]
        for status in message.status:
            if status.name == f"{self.process.namespace}/adapter: adaptation":
                self._made["adapter"] = made
                self.learning = {value.key: value.value for value in status.values}
                self.learning |= {"level": status.level, "message": status.message}

    def _next(self, node: str) -> None:
        now = self.get_clock().now().nanoseconds
        self.until(lambda: self._made[node] > now, f"diagnostics of {node}")

    def next_report(self) -> dict[str, Any]:
        """The first diagnostics of the perception that were made after this call."""
        self._next("perception")
        return self.diagnostics

    def next_learning(self) -> dict[str, Any]:
        """The first diagnostics of the adapter that were made after this call."""
        self._next("adapter")
        return self.learning

    def start(self) -> None:
        """Wait until both nodes are there, and perception answers."""
        self.until(self.is_ready, "both nodes")
        self.until(lambda: self.segmentation or not self.send(self.image()[0]), "first answer")
        self.spin_for(0.2)

    def is_ready(self) -> bool:
        """Whether both nodes are there and hear each other."""
        topics = {"statistics": 2, "segmentation": 2}  # the adapter and this client
        heard = all(
            self.count_subscribers(f"{self.process.namespace}/{topic}") >= number
            for topic, number in topics.items()
        )
        return heard and self.images.get_subscription_count() >= 2 and bool(self.learning)

    def image(self) -> tuple[np.ndarray, np.ndarray]:
        """The next scene and its true mask."""
        self._index += 1
        clean = scene(1000 + self._index)
        mask = clean.argmax(2)
        return (clean * np.array(self.light)).astype(np.uint8), mask

    def drive(self, frames: int, hz: float = 40.0, wait: bool = True) -> list[float]:
        """Send frames at a rate; share of right pixels of each one that was answered.

        Args:
            frames: How many.
            hz: Frames a second at most.
            wait: Send the next one only when the one before was answered.
        """
        sent = []
        due = time.monotonic()
        for _ in range(frames):
            image, mask = self.image()
            key = self.send(image) if not wait else self.answer(image)
            sent.append((key, mask))
            due = max(due + 1 / hz, time.monotonic())
            self.spin_for(due - time.monotonic())
        right = []
        for key, mask in sent:
            if key in self.segmentation:
                right.append(float((self.mask(key) == mask).mean()))
        return right

    def answer(self, image: np.ndarray) -> Key:
        """Send a frame and wait for its mask."""
        key = self.send(image)
        self.until(lambda: key in self.segmentation, "answer")
        return key

    def mask(self, key: Key) -> np.ndarray:
        """The mask of an answered frame, uint8 [H, W]."""
        return mask_from_message(self.segmentation[key])

    def drive_until(self, condition: Any, what: str) -> list[float]:
        """Drive on until something holds."""
        right: list[float] = []

        def there() -> bool:
            right.extend(self.drive(2))
            return condition()

        self.until(there, f"{what}; last learning: {self.learning}")
        return right

    def ask(self, service: str) -> Trigger.Response:
        """Call a service of the adapter node without arguments."""
        return self._call_adapter(Trigger, service, Trigger.Request())

    def freeze(self, frozen: bool) -> SetBool.Response:
        """Call `~/freeze`."""
        return self._call_adapter(SetBool, "freeze", SetBool.Request(data=frozen))

    def _call_adapter(self, kind: Any, service: str, request: Any) -> Any:
        target, self.target = self.target, f"{self.process.namespace}/adapter"
        try:
            return self.call(kind, service, request)
        finally:
            self.target = target

    def set_rate(self, rate: float) -> None:
        """Set the adapter's parameter `rate`."""
        target, self.target = self.target, f"{self.process.namespace}/adapter"
        try:
            assert self.set("rate", rate).successful
        finally:
            self.target = target

    def mend(self) -> None:
        """Go to where the light is yellow, until an adapter is in use there."""
        self.light = AWAY
        self.drive_until(lambda: self.learning.get("state") == "adapted", "adapter")

    def used(self) -> str:
        """Name of the adapter that perception says it uses."""
        return self.next_report()["adapter"]

    def agreed(self) -> str:
        """Name of the adapter that both nodes tell, once they tell the same."""
        self.until(lambda: self.used() == self.next_learning()["adapter"], "agreement")
        return self.learning["adapter"]

    def told(self, name: str) -> int:
        """A count of the adapter's newest diagnostics; 0 before the first."""
        return int(self.learning.get(name, 0))
