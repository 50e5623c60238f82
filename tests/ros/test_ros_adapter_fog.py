"""Fog before a network that was really trained: masks as they are published, against labels."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from adapting_robot import AdaptingRobot  # noqa: E402

from edge_runtime import Frame, Perception  # noqa: E402
from edge_runtime.adaptation.shifts import ShiftStream, parse_shifts  # noqa: E402
from edge_runtime.datasets import load_dataset  # noqa: E402
from edge_runtime.evaluation import confusion, miou  # noqa: E402

pytestmark = [pytest.mark.ros, pytest.mark.slow]
Labelled = tuple[np.ndarray, np.ndarray]
Start = Callable[..., Any]

CALIBRATION = Path(__file__).parents[1] / "calibration"
sys.path.insert(0, str(CALIBRATION))
_SPEC = importlib.util.spec_from_file_location("calibration_conftest", CALIBRATION / "conftest.py")
assert _SPEC is not None and _SPEC.loader is not None
_FIXTURES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FIXTURES)
blocks, trained_bundle = _FIXTURES.blocks, _FIXTURES.trained_bundle


def judged(
    start: Start, client: Start, bundle: Path, folder: Path, frames: list[Labelled], classes: int
) -> dict[str, Any]:
    """Mean IoU of the published masks and of the network as trained, over the same frames."""
    perception = start(bundle=bundle, max_age_ms=0, autostart=True)
    robot = client(perception, kind=AdaptingRobot)
    robot.adapter = start(
        "fieldsight.adapter_node",
        bundle=bundle,
        mode="on",
        rate=100.0,
        priority="low",
        state_folder=folder,
    )
    robot.until(robot.is_ready, "both nodes")
    robot.spin_for(0.5)
    plain = Perception(bundle, threads=1)
    due = time.monotonic()
    before, after = np.zeros((2, classes, classes), np.int64)
    for image, mask in frames:
        robot.spin_for(max(0.0, due - time.monotonic()))
        due = max(due + 0.1, time.monotonic())  # 10 Hz, less where the machine is busy
        after += confusion(robot.mask(robot.answer(image)), mask, classes)
        result = plain(Frame(image, 0, "")).segmentation
        assert result is not None
        before += confusion(result.mask, mask, classes)
    told = robot.next_learning()
    print(f"\nas trained {miou(before):.4f}, published {miou(after):.4f}: {told}")
    return {"before": miou(before), "after": miou(after), **told}


def fogged(frames: Iterator[Labelled], fog: str) -> list[Labelled]:
    stream = ShiftStream(parse_shifts(fog))
    return [(stream.image(image, i), mask) for i, (image, mask) in enumerate(frames)]


def test_fog_over_blocks(start: Start, client: Start, trained_bundle: Path, tmp_path: Path) -> None:
    from block_scene import draw_block

    frames = fogged((draw_block(100 + i)[:2] for i in range(80)), "fog:0.3")
    found = judged(start, client, trained_bundle, tmp_path / "state", frames, 2)
    assert found["promotions"] == "1" and found["state"] == "adapted"
    assert found["after"] > found["before"] + 0.1


def test_fog_over_camvid(start: Start, client: Start, camvid: Path, tmp_path: Path) -> None:
    """With the bundle that FIELDSIGHT_BUNDLE names, trained on CamVid's classes."""
    if (bundle := os.environ.get("FIELDSIGHT_BUNDLE")) is None:
        pytest.skip("FIELDSIGHT_BUNDLE names no trained bundle")
    dataset = load_dataset(f"{camvid}:val")
    samples = [dataset.read(index) for index in range(len(dataset.samples))]
    classes = len(dataset.segmentation_classes or [])
    frames = fogged(((s.image, s.mask) for s in samples if s.mask is not None), "fog:0.75")
    found = judged(start, client, Path(bundle), tmp_path / "state", frames, classes)
    assert int(found["promotions"]) >= 1 and found["after"] > found["before"] + 0.2
