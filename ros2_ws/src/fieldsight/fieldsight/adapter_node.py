"""The adapter node: watches what perception sees, learns, and gives it adapters to use.

python -m fieldsight.adapter_node --ros-args -p bundle:=NAME.bundle -p mode:=on

It is a process of its own so that nothing it does, its end included, reaches perception but by the
one small message of an adapter.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Float32MultiArray, Header
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import LabelInfo

from edge_runtime import InputError, Perception
from edge_runtime.telemetry import Counters, Health
from fieldsight import adapter_parameters as parameters
from fieldsight.adapter_monitor import diagnostic_status
from fieldsight.background import ProcessorShare, set_priority
from fieldsight.camera_info import CameraInfoListener
from fieldsight.intake import Intake
from fieldsight.learning import Learning
from fieldsight.outputs import LATCHED
from fieldsight.process import run_node
from fieldsight.state_folder import StateFolder
from fieldsight.tags import adapter_message, model_of


class AdapterNode(Node):
    """Runs a learner beside a perception node of the same bundle.

    Args:
        kwargs: For rclpy's Node.

    Raises:
        InputError: A parameter, the bundle or the state folder cannot be used.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("adapter", **kwargs)
        self._log = _Forward(self)
        logging.getLogger("edge_runtime").addHandler(self._log)
        logging.getLogger("edge_runtime").setLevel(logging.INFO)
        parameters.declare(self)
        priority = set_priority(self.value("priority"))
        self._counters = Counters()
        self._perception = self._open()
        self._folder = StateFolder(parameters.state_folder(self))
        self._model = model_of(self._perception.bundle)
        publisher = None
        if self.value("mode") == "on":
            topic = f"{self.value('perception')}/adapter"
            publisher = self.create_publisher(Float32MultiArray, topic, LATCHED)
        self._adapters = publisher
        self.learning = Learning(
            self._perception,
            self._folder,
            parameters.guard_options(self),
            None if publisher is None else self._give,
            self._counters,
            self.value("strategy"),
            self.value("mode"),
            self.value("drift_threshold") or None,
            self.value("keep_frames"),
        )
        self._listen()
        self._serve()
        self._settings = {
            "bundle": self._perception.manifest.name,
            **{name: self.value(name) for name in ("mode", "strategy")},
            "backend": self._perception.engine.name,
            "state_folder": str(self._folder.path),
            "priority": priority,
        }
        self.get_logger().info(", ".join(f"{k}: {v}" for k, v in self._settings.items()))

    def value(self, name: str) -> Any:
        """A parameter's value."""
        return self.get_parameter(name).value

    def close(self) -> None:
        """Keep what was learnt, and free everything."""
        self.learning.close()
        logging.getLogger("edge_runtime").removeHandler(self._log)

    def _open(self) -> Perception:
        bundle, task = self.value("bundle"), self.value("task")
        if not bundle:
            raise InputError("parameter 'bundle' is empty; set it to the folder of a model bundle")
        return Perception(
            bundle,
            backend=self.value("backend"),
            precision=self.value("precision"),
            tasks=None if task == "all" else [task],
            threads=1,
        )

    def _listen(self) -> None:
        perception = self._perception
        self._intake = Intake(
            self,
            list(perception.tasks),
            self.value("image_transport") == "compressed",
            self._model,
            perception.manifest.adapter_size,
            self._wanted,
            self.learning.begin,
            self._counters,
        )
        if self.value("rectify") == "camera_info":
            CameraInfoListener(self, perception, Health())
        elif self.value("rectify") == "none":
            perception.camera = None
        self.create_subscription(LabelInfo, "label_info", self._on_label_info, LATCHED)
        self._ticks = self.create_timer(1 / self.value("rate"), self._tick)
        self.add_on_set_parameters_callback(self._on_parameters)

    def _serve(self) -> None:
        self.create_service(SetBool, "~/freeze", self._on_freeze)
        self.create_service(Trigger, "~/rollback", self._on_rollback)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/snapshot", self._on_snapshot)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._processor_share = ProcessorShare()
        self.create_timer(1.0, self._publish_diagnostics)

    # Frames

    def _tick(self) -> None:
        if not self.learning.busy:
            self._intake.ask()

    def _wanted(self, adapter: str) -> bool:
        wanted = self.learning.wanted(adapter)
        if not wanted and self.learning.ignored:
            self._intake.pause()  # look again at the next tick, not at every frame
        return wanted

    def _give(self, adapter: np.ndarray) -> None:
        assert self._adapters is not None
        self._adapters.publish(adapter_message(adapter, self._model))

    def _on_label_info(self, message: LabelInfo) -> None:
        """Candidates are judged by the boxes that perception would publish."""
        if 0 <= message.threshold <= 1:
            self._perception.score_threshold = message.threshold

    def _on_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        for parameter in changed:
            if parameter.name == "rate":
                self._ticks.timer_period_ns = int(1e9 / parameter.value)
        return SetParametersResult(successful=True)

    # Services

    def _on_freeze(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.learning.freeze(request.data)
        problem = self._folder.problems.last
        response.success = True
        response.message = "frozen" if request.data else "learning"
        if problem:
            response.message += f"; forgotten when the node ends: {problem}"
        self.get_logger().info(response.message)
        return response

    def _on_rollback(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self.learning.rollback()
        response.message = "rolled back" if response.success else "no adapter is in use"
        return self._said(response)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.learning.reset()
        response.success, response.message = True, "as trained"
        return self._said(response)

    def _on_snapshot(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        version = self.learning.snapshot()
        response.success = version is not None
        response.message = f"version {version}" if response.success else self._folder.problems.last
        return self._said(response)

    def _said(self, response: Trigger.Response) -> Trigger.Response:
        self.get_logger().info(response.message)
        return response

    def _publish_diagnostics(self) -> None:
        name = self.get_fully_qualified_name()
        status = diagnostic_status(
            name,
            self._settings,
            self.learning,
            self._counters,
            self._folder.problems,
            self._processor_share(),
        )
        header = Header(stamp=self.get_clock().now().to_msg())
        self._diagnostics.publish(DiagnosticArray(header=header, status=[status]))


class _Forward(logging.Handler):
    """Gives what the learner says to the node's log."""

    def __init__(self, node: Node) -> None:
        super().__init__(logging.INFO)
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Say it at its level; rclpy wants a line of its own for each."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def main() -> None:
    """Learn until interrupted; exit code 2 if a parameter, bundle or folder cannot be used."""
    sys.exit(run_node(AdapterNode))


if __name__ == "__main__":
    main()
