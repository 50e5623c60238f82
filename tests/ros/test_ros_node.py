"""The perception node as a process: images in over DDS, answers out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from ros_client import Start, scene  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import Float32MultiArray  # noqa: E402

pytestmark = pytest.mark.ros


def test_every_frame_is_answered_with_its_header(
    start: Start, client: Start, bundle_path: Path
) -> None:
    robot = client(start(bundle=bundle_path, max_age_ms=0))
    robot.activate()
    for index in range(20):
        key = robot.send(scene(index), frame_id=f"camera_{index % 3}")
        robot.until(lambda key=key: robot.answered(key), f"answer to frame {index}")
        robot.spin_for(0.1)
    assert set(robot.sent) == set(robot.detections) == set(robot.segmentation)
    answer = robot.detections[robot.sent[0]]
    assert [d.results[0].hypothesis.class_id for d in answer.detections] == ["box", "ball"]
    assert all(d.header == answer.header for d in answer.detections)
    first = answer.detections[0]
    assert first.results[0].hypothesis.score == pytest.approx(0.9)
    # The network's box 8..24 in 64x48 pixels, in an image twice as large.
    center = first.bbox.center.position
    assert (center.x, center.y) == pytest.approx((32, 32), abs=0.01)
    assert (first.bbox.size_x, first.bbox.size_y) == pytest.approx((32, 32), abs=0.01)
    mask = robot.segmentation[robot.sent[0]]
    assert (mask.encoding, mask.height, mask.width, mask.step) == ("mono8", 96, 128, 128)


def test_red_images_get_red_masks(start: Start, client: Start, bundle_path: Path) -> None:
    robot = client(start(bundle=bundle_path, max_age_ms=0))
    robot.activate()
    for channel in range(3):
        image = np.zeros((96, 128, 3), np.uint8)
        image[..., channel] = 200
        key = robot.send(image)
        robot.until(lambda key=key: robot.answered(key), "answer")
        assert set(robot.segmentation[key].data) == {channel}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_one_task_alone(start: Start, client: Start, bundle_path: Path, task: str) -> None:
    robot = client(start(bundle=bundle_path, task=task, autostart=True, max_age_ms=0))
    robot.connect()
    answers = robot.detections if task == "detection" else robot.segmentation
    key = robot.send(scene())
    robot.until(lambda: key in answers, "answer")
    topics = {
        name.rpartition("/")[2]
        for name, _ in robot.get_publisher_names_and_types_by_node(
            "perception", robot.process.namespace
        )
    }
    assert ("detections" in topics) == (task == "detection")
    assert ("segmentation" in topics) == (task == "segmentation")


def test_empty_results_are_published_as_empty(
    start: Start, client: Start, bundle_path: Path
) -> None:
    robot = client(start(bundle=bundle_path, score_threshold=0.95, max_age_ms=0))
    robot.activate()
    key = robot.send(scene())
    robot.until(lambda: robot.answered(key), "answer")
    assert robot.detections[key].detections == []


def test_bad_images_are_skipped_and_counted(start: Start, client: Start, bundle_path: Path) -> None:
    node = start(bundle=bundle_path, max_age_ms=0)
    robot = client(node)
    robot.activate()
    pixels = bytes(8 * 8 * 3)
    bad = [
        Image(height=8, width=8, encoding="rgb8", step=23, data=pixels),
        Image(height=8, width=8, encoding="rgb8", step=25, data=pixels),
        Image(height=8, width=8, encoding="32FC7", step=24, data=pixels),
        Image(height=0, width=0, encoding="rgb8", step=0),
    ]
    for count, message in enumerate(bad, start=1):
        robot.send_message(message)
        robot.until(lambda count=count: robot.count("skipped") == count, "skipped image")
    key = robot.send(scene())
    robot.until(lambda: robot.answered(key), "answer")
    assert len(robot.detections) == len(robot.segmentation) == 1
    assert "image skipped" in node.output


def test_a_burst_drops_counts_and_keeps_memory_flat(
    start: Start, client: Start, bundle_path: Path
) -> None:
    node = start(bundle=bundle_path, max_age_ms=200)
    robot = client(node)
    robot.activate()
    image = scene(size=(480, 640))

    def burst(frames: int) -> None:
        for index in range(frames):
            robot.send(image, age_s=5.0 if index % 10 == 0 else 0.0)
            robot.spin_for(0.01)

    robot.until(lambda: robot.detections or not robot.send(image), "first answer")
    robot.sent = robot.sent[robot.sent.index(next(iter(robot.detections))) :]
    burst(100)
    before = node.memory_kb()
    burst(250)
    os.kill(node.process.pid, signal.SIGSTOP)  # an engine that is busy for long
    burst(20)
    os.kill(node.process.pid, signal.SIGCONT)
    burst(30)

    def accounted() -> bool:
        counted = robot.count("frames") + robot.count("dropped_stale")
        return counted + robot.count("dropped_missed") == len(robot.sent)

    robot.until(accounted, "account of all frames")
    assert robot.count("dropped_stale") >= 25
    assert robot.count("dropped_missed") >= 1
    assert robot.count("frames") >= 50
    robot.until(lambda: len(robot.detections) == robot.count("frames"), "all answers")
    assert set(robot.detections) <= set(robot.sent)
    assert node.memory_kb() - before < 20_000


def test_statistics_and_overlay(start: Start, client: Start, bundle_path: Path) -> None:
    robot = client(start(bundle=bundle_path, max_age_ms=0))
    robot.activate()
    overlays: list[Image] = []
    vectors: list[Float32MultiArray] = []
    robot.create_subscription(Image, "overlay", overlays.append, 10)
    robot.create_subscription(Float32MultiArray, "statistics", vectors.append, 10)
    topics = [f"{robot.process.namespace}/{name}" for name in ("overlay", "statistics")]
    robot.until(lambda: all(robot.count_publishers(topic) for topic in topics), "publishers")
    image = scene()

    def both() -> bool:
        robot.send(image)
        robot.spin_for(0.1)
        return bool(overlays and vectors)

    robot.until(both, "overlay and statistics")
    assert (overlays[0].encoding, overlays[0].width) == ("rgb8", 128)
    assert bytes(overlays[0].data) != image.tobytes()
    assert len(vectors[0].data) == 6


def test_compressed_images(start: Start, client: Start, bundle_path: Path) -> None:
    import cv2

    robot = client(start(bundle=bundle_path, image_transport="compressed", max_age_ms=0))
    assert robot.transition("configure") and robot.transition("activate")
    images = robot.create_publisher(CompressedImage, "image/compressed", 10)
    robot.until(lambda: images.get_subscription_count(), "subscription")
    robot.spin_for(0.3)
    images.publish(CompressedImage(format="jpeg", data=b"no image"))
    message = CompressedImage(format="png", data=cv2.imencode(".png", scene())[1].tobytes())
    message.header.stamp = robot.get_clock().now().to_msg()
    robot.until(lambda: robot.count("skipped") == 1, "skipped image")
    images.publish(message)
    robot.until(lambda: len(robot.detections) == 1, "answer")


def test_camera_publisher_plays_a_folder(
    start: Start, client: Start, bundle_path: Path, tmp_path: Path
) -> None:
    import cv2

    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index}.png"), scene(index))
    robot = client(start(bundle=bundle_path, max_age_ms=0, autostart=True))
    robot.connect()
    camera = start(
        "fieldsight.camera_publisher", source=tmp_path, rate=5.0, frame_id="left", wait_for=1
    )
    robot.until(lambda: len(robot.detections) == len(robot.segmentation) == 5, "five answers")
    assert {frame_id for _, frame_id in robot.detections} == {"left"}
    assert camera.wait() == 0
    assert "5 frames published" in camera.output


@pytest.mark.slow
def test_camvid_at_10_hz(
    start: Start, client: Start, bundle_path: Path, camvid: Path, capsys: pytest.CaptureFixture
) -> None:
    """Every validation frame at 10 Hz; `FIELDSIGHT_BUNDLE` names a trained bundle to use."""
    from edge_runtime.datasets import load_dataset

    bundle = os.environ.get("FIELDSIGHT_BUNDLE", bundle_path)
    dataset = load_dataset(f"{camvid}:val")
    robot = client(start(bundle=bundle, autostart=True))
    robot.connect()
    robot.ask(dataset.read(0).image)  # an answer on both topics: each side has found the other
    robot.spin_for(1.0)
    for kept in (robot.sent, robot.detections, robot.segmentation):
        kept.clear()
    due = time.monotonic()
    for index, sample in enumerate(dataset.samples):
        robot.send(dataset.read(index).image, frame_id=sample.stem)
        due += 0.1
        robot.spin_for(due - time.monotonic())
    robot.until(lambda: all(map(robot.answered, robot.sent)), "answer to every frame")
    assert set(robot.sent) == set(robot.detections) == set(robot.segmentation)
    report = robot.next_report()
    with capsys.disabled():
        print(f"\n{len(robot.sent)} sent at 10 Hz, {len(robot.detections)} answered: {report}")
    assert int(report["dropped"]) == int(report["errors"]) == 0
