"""An adapter node that is killed, stalled, restarted or lied to; perception goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from adapting_robot import AWAY, AdaptingRobot  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from std_msgs.msg import Float32MultiArray  # noqa: E402

from edge_runtime.adaptation.store import AdapterStore  # noqa: E402
from edge_runtime.bundle import identity_adapter, open_bundle  # noqa: E402
from fieldsight.conversions import vector_to_message  # noqa: E402
from fieldsight.outputs import LATCHED  # noqa: E402
from fieldsight.tags import digest_of, model_of  # noqa: E402

pytestmark = pytest.mark.ros
Robots = Callable[..., AdaptingRobot]
BETTER = np.array([1, 1.2, 1.5, 0, 0, 0, 1, 1, 1, 0, 0, 0], np.float32)


def kill(one: AdaptingRobot) -> None:
    one.adapter.process.kill()
    one.adapter.process.wait()


def restart(one: AdaptingRobot) -> None:
    one.learning = {}
    assert one.start_adapter is not None
    one.adapter = one.start_adapter()
    one.until(one.is_ready, "both nodes")


def test_killed_and_restarted_it_comes_back_with_its_last_adapter(
    robot: Robots, colours_bundle: Path, tmp_path: Path
) -> None:
    one = robot()
    store = AdapterStore(tmp_path / "state", open_bundle(colours_bundle))
    one.mend()
    mended = np.mean(one.drive(10))
    kill(one)
    held = one.used()
    alone = one.drive(10)
    assert len(alone) == 10 and np.mean(alone) > mended - 0.05 and one.used() == held
    stored = store.load()
    assert stored is not None
    given = len(one.given)
    restart(one)
    one.until(lambda: len(one.given) > given, "adapter after the restart")
    assert np.array(one.given[given].data, np.float32).tolist() == stored.adapter.tolist()
    assert one.next_learning()["resumed"] == "1"
    one.drive_until(lambda: one.learning["state"] == "adapted", "adapted again")
    assert one.agreed() and one.told("promotions") == 0
    one.drive(10)
    assert one.freeze(True).success
    held = one.agreed()
    kill(one)
    restart(one)
    assert one.agreed() == held and one.learning["frozen"] == "True"
    assert one.adapter.stop() == 0
    stored = store.load()
    assert stored is not None and digest_of(stored.adapter) == held == one.used()


@pytest.mark.slow
def test_killed_at_any_moment_it_comes_back(robot: Robots) -> None:
    """Five kills within a second of a start, while adapters are found, stored and followed."""
    one = robot()
    one.light = AWAY
    rng = np.random.default_rng(0)
    for _ in range(5):
        one.drive(int(rng.integers(5, 40)))
        kill(one)
        held = one.used()
        one.drive(5)
        assert one.used() == held
        restart(one)
    one.mend()
    assert one.agreed() and one.learning["errors"] == "0"


def test_stalled_it_does_not_hold_perception_up(robot: Robots) -> None:
    one = robot()
    one.mend()
    os.kill(one.adapter.process.pid, signal.SIGSTOP)
    one.drive(5)
    held, before = one.used(), int(one.diagnostics["frames"])
    right = one.drive(150, hz=100)
    report = one.next_report()
    assert len(right) == 150 == int(report["frames"]) - before
    assert (report["dropped"], report["errors"], report["adapter"]) == ("0", "0", held)
    os.kill(one.adapter.process.pid, signal.SIGCONT)
    learnt = one.told("frames")
    one.drive_until(lambda: one.told("frames") > learnt + 5, "learning to go on")
    assert one.learning["state"] == "adapted" and one.learning["errors"] == "0"


def test_hostile_adapters_are_refused_counted_and_change_nothing(
    robot: Robots, colours_bundle: Path
) -> None:
    one = robot("off")
    bundle = open_bundle(colours_bundle)
    model = model_of(bundle)
    publisher = one.create_publisher(Float32MultiArray, f"{one.target}/adapter", LATCHED)
    one.until(publisher.get_subscription_count, "subscription")
    publisher.publish(vector_to_message(BETTER, f"adapter model={model}"))
    one.until(lambda: one.count("adapter_updates") == 1, "adapter")
    spoilt = np.where(BETTER == 1.5, np.nan, BETTER)
    for number, (values, label) in enumerate(
        [
            (BETTER, "adapter model=0123456789abcdef"),
            (np.tile(BETTER, 10_000), f"adapter model={model}"),
            (spoilt, f"adapter model={model}"),
        ],
        start=1,
    ):
        publisher.publish(vector_to_message(values, label))
        one.until(lambda number=number: one.count("adapter_rejected") == number, "rejection")
    assert one.used() == digest_of(BETTER) and one.count("adapter_updates") == 1
    assert len(one.drive(5)) == 5 and one.next_report()["errors"] == "0"
    assert "adapter rejected: " in one.process.output

    # A perception that is set up anew asks for the last message.
    for name in ("deactivate", "cleanup", "configure", "activate"):
        assert one.transition(name)
    assert one.used() == digest_of(identity_adapter(bundle.manifest))
    assert one.count("adapter_rejected") == 1


@pytest.mark.slow
def test_hostile_statistics_are_refused_and_counted(robot: Robots, colours_bundle: Path) -> None:
    one = robot()
    bundle = open_bundle(colours_bundle)
    model, name = model_of(bundle), digest_of(identity_adapter(bundle.manifest))
    publisher = one.create_publisher(Float32MultiArray, "statistics", 10)
    right = f"statistics model={model} adapter={name}"
    values = np.ones(12, np.float32)
    for number, message in enumerate(
        [
            vector_to_message(values, "statistics model=0123456789abcdef stamp=1 frame=camera"),
            vector_to_message(values[:5], f"{right} stamp=1 frame=camera"),
            vector_to_message(values, f"{right} stamp=soon frame=camera"),
            vector_to_message(values, right),
            Float32MultiArray(data=values.tolist()),
        ],
        start=1,
    ):

        def refused(message: Float32MultiArray = message, number: int = number) -> bool:
            publisher.publish(message)  # the node looks only as often as it wants a frame
            return one.told("rejected") >= number

        one.until(refused, f"rejection {number}")
    for _ in range(50):  # many frames of which no image ever comes
        stamp = one.get_clock().now().nanoseconds
        publisher.publish(vector_to_message(values, f"{right} stamp={stamp} frame=ghost"))
    learnt = one.told("frames")
    one.drive_until(lambda: one.told("frames") > learnt + 5, "learning to go on")
    assert one.learning["level"] == DiagnosticStatus.OK and one.learning["errors"] == "0"


@pytest.mark.slow
def test_perception_set_up_anew_is_given_the_adapter_again(robot: Robots) -> None:
    one = robot()
    one.mend()
    one.freeze(True)
    for name in ("deactivate", "cleanup", "configure", "activate"):
        assert one.transition(name)
    adapter = one.next_learning()["adapter"]
    one.until(lambda: one.used() == adapter, "the same adapter")
    assert np.mean(one.drive_until(lambda: one.learning["state"] == "frozen", "frames")) > 0.7


def test_an_adapter_from_elsewhere_is_noticed_and_replaced(
    robot: Robots, colours_bundle: Path
) -> None:
    one = robot()
    one.drive(5)
    publisher = one.create_publisher(Float32MultiArray, f"{one.target}/adapter", LATCHED)
    one.until(publisher.get_subscription_count, "subscription")
    label = f"adapter model={model_of(open_bundle(colours_bundle))}"
    publisher.publish(vector_to_message(BETTER, label))
    one.until(lambda: one.diagnostics.get("adapter") == digest_of(BETTER), "the other adapter")
    updates = one.count("adapter_updates")
    one.drive_until(lambda: one.count("adapter_updates") > updates, "the right adapter")
    assert one.agreed()
    assert one.told("other_adapter") > 0
