"""Perception and adapter node as two processes: what is learnt, and what is done with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from adapting_robot import AWAY, HOME, AdaptingRobot  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402

from edge_runtime import Frame, Perception  # noqa: E402
from edge_runtime.adaptation.frame_memory import FrameMemory  # noqa: E402
from edge_runtime.adaptation.store import AdapterStore  # noqa: E402
from edge_runtime.bundle import identity_adapter, open_bundle  # noqa: E402
from fieldsight.tags import digest_of, model_of  # noqa: E402

pytestmark = pytest.mark.ros
Robots = Callable[..., AdaptingRobot]


@pytest.fixture
def as_trained(colours_bundle: Path) -> str:
    return digest_of(identity_adapter(open_bundle(colours_bundle).manifest))


def test_a_shift_is_noticed_mended_and_left_again(
    robot: Robots, colours_bundle: Path, as_trained: str
) -> None:
    one = robot()
    home = one.drive(30)
    assert one.next_learning()["decision"] == "none" and one.used() == as_trained
    one.light = AWAY
    before = one.drive(3)
    one.mend()
    after = one.drive(30)
    lost = np.mean(home) - np.mean(before)
    assert np.mean(after) - np.mean(before) > 0.5 * lost > 0.05
    told = one.next_learning()
    assert (told["level"], told["message"], told["decision"]) == (
        DiagnosticStatus.OK,
        "adapted",
        "promoted",
    )
    assert float(told["drift"]) > float(told["drift_threshold"])
    assert float(told["drift.stem"]) > 0 and "drift.late" in told
    assert "closer to" in told["decision.reasons"]
    now, then = (float(told[f"decision.{who}.distance"]) for who in ("candidate", "current"))
    assert now < then
    assert told["promotions"] == "1" and told["store_problems"] == told["errors"] == "0"
    assert one.agreed() != as_trained
    one.light = HOME
    back = one.drive_until(lambda: one.learning["state"] == "normal", "return")
    assert np.mean(back[-4:]) > np.mean(home) - 0.05
    assert one.agreed() == as_trained
    label = one.given[-1].layout.dim[0].label
    assert label == f"adapter model={model_of(open_bundle(colours_bundle))}"


def test_adapters_that_take_effect_some_frames_late_do_no_harm(robot: Robots) -> None:
    """Messages that come as fast as they can; statistics name the adapter they are of."""
    one = robot()
    one.mend()
    one.drive(100, hz=300, wait=False)
    told = one.next_learning()
    labels = [message.layout.dim[0].label.split() for message in one.statistics]
    under = [label[2] for label in labels]
    changes = sum(a != b for a, b in zip(under, under[1:], strict=False))
    assert all(label[0] == "statistics" for label in labels) and changes > 5
    assert told["state"] == "adapted" and told["errors"] == "0"
    one.agreed()


def test_the_shadow_changes_nothing_and_may_keep_frames(
    robot: Robots, colours_bundle: Path, as_trained: str, tmp_path: Path
) -> None:
    one = robot("shadow", keep_frames=4)
    plain = Perception(colours_bundle, threads=1)
    one.light = AWAY
    sent: list[np.ndarray] = []
    send = one.send
    one.sent.clear()

    def keep(image: np.ndarray) -> Any:
        sent.append(image)
        return send(image)

    one.send = keep  # type: ignore[method-assign]
    one.drive_until(lambda: one.learning.get("state") == "adapted", "shadow's adapter")
    one.drive(40)
    one.next_learning()
    assert one.told("promotions") and one.learning["as_trained"] == "True"
    assert one.count_publishers(f"{one.target}/adapter") == 0
    assert one.used() == as_trained and not one.given
    memory = FrameMemory(tmp_path / "state" / "frames", open_bundle(colours_bundle))
    assert 1 <= len(memory) <= 4 and one.told("frames_kept") >= 1
    kept = {(frame.stamp_ns, frame.frame_id) for frame in memory.frames}
    assert kept <= set(one.segmentation)
    for image, key in zip(sent, one.sent, strict=True):
        segmentation = plain(Frame(image, 0, "")).segmentation
        assert segmentation is not None
        assert bytes(one.segmentation[key].data) == segmentation.mask.tobytes()


def test_freeze_snapshot_rollback_and_reset(
    robot: Robots, colours_bundle: Path, as_trained: str, tmp_path: Path
) -> None:
    one = robot()
    assert not one.ask("rollback").success
    one.mend()
    assert one.freeze(True).success
    held = one.agreed()
    one.drive(20)
    assert one.agreed() == held != as_trained and one.learning["frozen"] == "True"

    answer = one.ask("snapshot")
    version = int(answer.message.removeprefix("version "))
    stored = AdapterStore(tmp_path / "state", open_bundle(colours_bundle)).load(version)
    assert answer.success and stored is not None
    assert stored.note["event"] == "snapshot" and digest_of(stored.adapter) == held

    answer = one.ask("rollback")
    assert answer.success and answer.message == "rolled back"
    assert one.used() == as_trained and one.next_learning()["rollbacks"] == "1"
    assert one.freeze(False).message == "learning"
    assert one.ask("reset").success
    one.mend()
    assert one.told("promotions") + one.told("recalls") == 2
    assert one.ask("reset").message == "as trained"
    assert one.agreed() == as_trained and one.learning["as_trained"] == "True"


def test_off_watches_and_faults_of_the_camera_are_told(robot: Robots, as_trained: str) -> None:
    one = robot("off", priority="idle")
    threads = [int(name) for name in os.listdir(f"/proc/{one.adapter.process.pid}/task")]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
    assert len(threads) > 1 and "SCHED_IDLE" in one.learning["priority"]

    black = np.zeros((48, 64, 3), np.uint8)
    one.until(lambda: one.send(black) and one.learning.get("state") == "fault", "fault")
    told = one.next_learning()
    assert (told["level"], told["message"]) == (DiagnosticStatus.WARN, "camera: black")
    one.light = AWAY
    one.drive_until(lambda: one.learning["state"] == "shifted", "drift")
    told = one.next_learning()
    assert (told["mode"], told["decision"], told["promotions"]) == ("off", "none", "0")
    assert one.used() == as_trained


@pytest.mark.slow
def test_the_rate_bounds_what_is_learnt_from(robot: Robots) -> None:
    one = robot(rate=0.1)
    one.drive_until(lambda: one.told("frames") >= 1 or one.set_rate(100.0), "frames")
    one.set_rate(0.1)
    learnt = int(one.next_learning()["frames"])
    began = time.monotonic()
    one.drive(40)
    seen = int(one.next_learning()["frames"]) - learnt
    assert seen <= 1 + (time.monotonic() - began) / 10
    one.set_rate(100.0)
    one.drive_until(lambda: one.told("frames") > learnt + 10, "frames")


@pytest.mark.slow
def test_what_cannot_be_stored_is_told_and_stops_nothing(robot: Robots, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = robot(state_folder=tmp_path / "file")
    one.mend()
    told = one.next_learning()
    assert told["level"] == DiagnosticStatus.WARN and told["message"].startswith("not stored: ")
    assert int(told["store_problems"]) > 0 and one.agreed()
    answer = one.ask("snapshot")
    assert not answer.success and str(tmp_path / "file") in answer.message
    assert "forgotten when the node ends" in one.freeze(True).message
