"""The perception node as a process: its lifecycle, its parameters, what it latches and reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from ros_client import Start, scene  # noqa: E402
from std_msgs.msg import Float32MultiArray  # noqa: E402
from vision_msgs.msg import LabelInfo  # noqa: E402

from edge_runtime.bundle import open_bundle  # noqa: E402
from fieldsight.conversions import vector_to_message  # noqa: E402
from fieldsight.tags import model_of  # noqa: E402

pytestmark = pytest.mark.ros
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_lifecycle_over_services(start: Start, client: Start, bundle_path: Path) -> None:
    node = start(bundle=bundle_path, max_age_ms=0)
    robot = client(node)
    assert robot.state() == "unconfigured"
    assert not robot.transition("activate")
    for _ in range(2):
        assert robot.transition("configure")
        assert robot.state() == "inactive"
        assert robot.transition("activate")
        assert robot.state() == "active"
        robot.connect()
        key = robot.send(scene())
        robot.until(lambda key=key: robot.answered(key), "answer")
        assert robot.transition("deactivate")
        robot.until(lambda: not robot.images.get_subscription_count(), "end of subscription")
        assert robot.transition("cleanup")
        assert robot.state() == "unconfigured"
        assert robot.next_report()["backend"] == "none"
    assert robot.transition("unconfigured_shutdown")
    assert robot.state() == "finalized"
    assert node.stop() == 0


def test_a_bad_bundle_leaves_the_node_unconfigured(
    start: Start, client: Start, bundle_path: Path, tmp_path: Path
) -> None:
    node = start(bundle=tmp_path / "absent.bundle")
    robot = client(node)
    assert not robot.transition("configure")
    assert robot.state() == "unconfigured"
    assert "absent.bundle: does not exist" in node.output
    assert robot.set("bundle", str(bundle_path)).successful
    assert robot.transition("configure")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bundel": "x"}, "did you mean 'bundle'?"),
        ({"score_threshold": 1.5}, "out of range"),
        ({"task": "tracking"}, "expected one of all, detection, segmentation"),
        ({"bundle": "no/where.bundle", "autostart": True}, "does not exist"),
    ],
)
def test_bad_parameters_end_the_node(start: Start, parameters: dict, message: str) -> None:
    node = start(**parameters)
    assert node.wait() == 2
    assert message in node.output
    assert "Traceback" not in node.output


def test_parameters_are_described_and_guarded(
    start: Start, client: Start, bundle_path: Path
) -> None:
    robot = client(start(bundle=bundle_path, max_age_ms=0, autostart=True))
    robot.connect()
    descriptor = robot.describe("score_threshold")
    assert descriptor.description
    assert descriptor.floating_point_range[0].to_value == 1.0
    assert robot.describe("task").read_only
    assert not robot.set("task", "detection").successful
    assert not robot.set("score_threshold", 1.5).successful
    assert not robot.set("score_threshold", "high").successful
    refused = robot.set("bundle", "other.bundle")
    assert not refused.successful and "unconfigured" in refused.reason
    assert robot.set("score_threshold", 0.85).successful
    key = robot.send(scene())
    robot.until(lambda: robot.answered(key), "answer")
    assert len(robot.detections[key].detections) == 1


def test_an_image_topic_without_publisher_is_reported(
    start: Start, client: Start, bundle_path: Path
) -> None:
    robot = client(start(bundle=bundle_path, autostart=True))
    robot.connect()
    assert robot.diagnostics["message"] == "no frame yet"
    robot.destroy_publisher(robot.images)
    robot.until(lambda: not robot.count("publishers"), "report of no publisher")
    assert robot.diagnostics["message"] == "no frame yet; nothing publishes on the image topic"


def test_labels_are_latched(start: Start, client: Start, bundle_path: Path) -> None:
    robot = client(start(bundle=bundle_path, score_threshold=0.4, autostart=True))
    robot.connect()
    got: dict[str, LabelInfo] = {}
    for topic in ("label_info", "detections/label_info"):
        robot.create_subscription(
            LabelInfo, topic, lambda message, topic=topic: got.update({topic: message}), LATCHED
        )
    robot.until(lambda: len(got) == 2, "label info")
    pairs = [(c.class_id, c.class_name) for c in got["label_info"].class_map]
    assert pairs == [(0, "red"), (1, "green"), (2, "blue")]
    assert [c.class_name for c in got["detections/label_info"].class_map] == ["box", "ball"]
    assert got["label_info"].threshold == pytest.approx(0.4)


def test_diagnostics_tell_latency_counts_and_backend(
    start: Start, client: Start, bundle_path: Path
) -> None:
    robot = client(start(bundle=bundle_path, max_age_ms=0))
    assert robot.next_report()["message"] == "unconfigured"
    robot.activate()
    for index in range(5):
        key = robot.send(scene(index))
        robot.until(lambda key=key: robot.answered(key), "answer")
    report = robot.next_report()
    assert report["level"] == DiagnosticStatus.OK
    assert report["state"] == "active"
    assert report["backend"].startswith("onnxruntime-cpu")
    assert int(report["frames"]) == 5
    assert 0 < float(report["latency_p50_ms"]) <= float(report["latency_p99_ms"])
    assert int(report["dropped"]) == 0


def test_adapter_changes_the_mask_and_a_wrong_one_is_rejected(
    start: Start, client: Start, bundle_path: Path
) -> None:
    robot = client(start(bundle=bundle_path, max_age_ms=0))
    robot.activate()
    adapters = robot.create_publisher(Float32MultiArray, "perception/adapter", LATCHED)
    red = np.zeros((96, 128, 3), np.uint8)
    red[..., 0] = 100
    label = f"adapter model={model_of(open_bundle(bundle_path))}"
    adapters.publish(vector_to_message(np.array([1.0, 1, 1, 0, 5, 0]), label))
    robot.until(lambda: robot.count("adapter_updates") == 1, "adapter")
    for wrong in ([1.0, 1, 1], [float("nan"), 1, 1, 0, 0, 0]):
        count = robot.count("adapter_rejected")
        adapters.publish(vector_to_message(np.array(wrong), label))
        robot.until(lambda count=count: robot.count("adapter_rejected") > count, "rejection")
    key = robot.send(red)
    robot.until(lambda: robot.answered(key), "answer")
    assert set(robot.segmentation[key].data) == {1}
