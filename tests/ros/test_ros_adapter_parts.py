"""The parts of the adapter node: labels, matching, parameters, folder, launch file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

rclpy = pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from rclpy.exceptions import ParameterException  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Float32MultiArray, Header, MultiArrayDimension  # noqa: E402

from edge_runtime import Detections, InputError, Result  # noqa: E402
from edge_runtime.adaptation.limits import Limits  # noqa: E402
from edge_runtime.bundle import open_bundle  # noqa: E402
from fieldsight import adapter_parameters, conversions, tags  # noqa: E402
from fieldsight.adapter_node import AdapterNode  # noqa: E402
from fieldsight.intake import Matcher  # noqa: E402
from fieldsight.state_folder import StateFolder, default_folder  # noqa: E402

pytestmark = pytest.mark.ros
PACKAGE = Path(__file__).resolve().parents[2] / "ros2_ws" / "src" / "fieldsight"
MODEL = "0123456789abcdef"
VALUES = np.array([1, 1.2, 1.5, 0, 0.25, -1], np.float32)
RIGHT = f"adapter model={MODEL}"


# Labels


def test_adapters_and_statistics_come_back_as_they_were() -> None:
    message = tags.adapter_message(VALUES, MODEL)
    assert (tags.read_adapter(message, MODEL, 6) == VALUES).all()
    result = Result(1_700_000_000_123_456_789, "left camera=1 stamp=2", None, None, VALUES)
    read = tags.read_statistics(
        tags.statistics_message(result, MODEL, tags.digest_of(VALUES)), MODEL, 6
    )
    assert (read.values == VALUES).all() and read.adapter == tags.digest_of(VALUES)
    assert (read.stamp_ns, read.frame_id) == (result.stamp_ns, result.frame_id)


def test_an_adapters_name_tells_it_from_its_neighbours() -> None:
    near = VALUES.copy()
    near[2] = np.nextafter(near[2], np.float32(2))
    assert tags.digest_of(VALUES) == tags.digest_of(VALUES.astype(np.float64))
    assert tags.digest_of(near) != tags.digest_of(VALUES)


def _of_two_dimensions() -> Float32MultiArray:
    message = conversions.vector_to_message(VALUES, RIGHT)
    message.layout.dim.append(MultiArrayDimension(label=RIGHT, size=6, stride=6))
    return message


def _with_offset(offset: int) -> Float32MultiArray:
    message = conversions.vector_to_message(VALUES, RIGHT)
    message.layout.data_offset = offset
    return message


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (conversions.vector_to_message(VALUES, "adapter model=fedcba9876543210"), "fedcba98"),
        (conversions.vector_to_message(VALUES, "adapter"), "for the network ''"),
        (conversions.vector_to_message(VALUES, f"adapter  model={MODEL}x"), "for the network"),
        (conversions.vector_to_message(VALUES, f"statistics model={MODEL}"), "labelled 'stat"),
        (Float32MultiArray(data=VALUES.tolist()), "in 0 dimensions"),
        (Float32MultiArray(), "in 0 dimensions"),
        (_of_two_dimensions(), "in 2 dimensions"),
        (conversions.vector_to_message(VALUES[:5], RIGHT), "has 5 values, expected 6"),
        (conversions.vector_to_message(np.tile(VALUES, 9999), RIGHT), "has 59994 values"),
        (conversions.vector_to_message(VALUES[:0], RIGHT), "has 0 values"),
        (_with_offset(1), "has 5 values"),
        (_with_offset(2**32 - 1), "has 0 values"),
        (conversions.vector_to_message(np.array([np.nan, *VALUES[1:]]), RIGHT), "1 values"),
        (conversions.vector_to_message(np.array([*VALUES[:5], -np.inf]), RIGHT), "not finite"),
        (conversions.vector_to_message(VALUES, "x" * 10**6), "xxx"),
        (conversions.vector_to_message(VALUES, "adapter model=" + "9" * 10**6), "999"),
    ],
)
def test_what_is_no_adapter_for_this_network_is_refused(
    message: Float32MultiArray, says: str
) -> None:
    with pytest.raises(InputError) as caught:
        tags.read_adapter(message, MODEL, 6)
    assert says in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("stamp", ["", "soon", "1.5", "1e9"])
def test_statistics_without_a_stamp_are_refused(stamp: str) -> None:
    label = f"statistics model={MODEL} adapter=0 stamp={stamp} frame=left"
    with pytest.raises(InputError, match="no number"):
        tags.read_statistics(conversions.vector_to_message(VALUES, label), MODEL, 6)


def test_detections_and_masks_come_back_as_they_were() -> None:
    boxes = np.array([[1, 2, 5, 10], [3, 3, 4, 4]], np.float32)
    sent = Detections(boxes, np.array([0.75, 0.5], np.float32), np.array([1, 0], np.int32))
    message = conversions.detections_to_message(sent, ["a", "b"], Header())
    read = conversions.detections_from_message(message, ["a", "b"])
    for name in ("boxes", "scores", "labels"):
        assert (getattr(read, name) == getattr(sent, name)).all()
    assert len(conversions.detections_from_message(type(message)(), ["a"])) == 0
    with pytest.raises(InputError, match="class 'b'"):
        conversions.detections_from_message(message, ["a", "c"])
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = conversions.image_to_message(mask, "mono8", Header())
    assert (conversions.mask_from_message(image) == mask).all()


@pytest.mark.parametrize(
    "fields", [{"encoding": "rgb8"}, {"step": 3}, {"step": 5}, {"height": 0}, {"data": b"\0" * 11}]
)
def test_impossible_masks_are_refused(fields: dict[str, Any]) -> None:
    given = {"height": 3, "width": 4, "step": 4, "encoding": "mono8", "data": b"\0" * 12}
    with pytest.raises(InputError, match="mask"):
        conversions.mask_from_message(Image(**given | fields))


# Matching


def test_parts_of_a_frame_are_matched_in_any_order() -> None:
    matcher = Matcher({"image", "statistics"})
    left, right = (5, "left"), (5, "right")
    assert matcher.add(left, "image", 1) is None
    assert matcher.add(right, "statistics", 2) is None
    assert matcher.add(left, "statistics", 3) == {"image": 1, "statistics": 3}
    assert matcher.add(right, "image", 4) == {"image": 4, "statistics": 2}
    assert len(matcher) == 0


def test_parts_without_the_rest_do_not_pile_up() -> None:
    matcher = Matcher({"image", "statistics"}, most=3)
    for stamp in range(1000):
        matcher.add((stamp, ""), "image", bytes(10))
        assert len(matcher) <= 3
    assert matcher.add((0, ""), "statistics", 1) is None, "the oldest went"
    assert matcher.add((999, ""), "statistics", 1) is not None


# Parameters


@pytest.fixture
def declared() -> Iterator[Callable[..., Node]]:
    """Makes nodes with the adapter's parameters, given some values."""
    context = rclpy.Context()
    rclpy.init(context=context)
    nodes: list[Node] = []

    def make(kind: Any = Node, **given: Any) -> Node:
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        if kind is Node:
            node = Node("adapter", context=context, parameter_overrides=overrides)
            nodes.append(node)
            adapter_parameters.declare(node)
            return node
        return kind(context=context, parameter_overrides=overrides)

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_parameters_are_described_ranged_and_read_only(declared: Callable[..., Node]) -> None:
    node = declared()
    text = (PACKAGE / "config" / "adapter.yaml").read_text()
    given = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert given == {name: node.get_parameter(name).value for name in given}
    assert node.get_parameter("guard.radius").value == Limits().radius
    names = {"bundle", "guard.radius", "guard.cooldown", *given}
    for name in names:
        descriptor = node.describe_parameter(name)
        assert descriptor.description and descriptor.read_only == (name != "rate")
    assert node.describe_parameter("rate").floating_point_range[0].to_value == 100.0
    results = node.set_parameters([Parameter("rate", value=0.0), Parameter("mode", value="on")])
    assert not any(result.successful for result in results)
    assert node.set_parameters([Parameter("rate", value=9.5)])[0].successful


@pytest.mark.parametrize(
    ("given", "mode"), [(True, "on"), (False, "off"), ("on", "on"), ("shadow", "shadow")]
)
def test_yaml_may_take_mode_for_a_boolean(
    declared: Callable[..., Node], given: Any, mode: str
) -> None:
    assert declared(mode=given).get_parameter("mode").value == mode


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mode": "maybe"}, "one of off, shadow, on"),
        ({"strategy": "hope"}, "parameter 'strategy' is 'hope', expected one of align"),
        ({"priority": "high"}, "one of idle, low, normal"),
        ({"task": "tracking"}, "one of all, detection, segmentation"),
        ({"stategy": "align"}, "did you mean 'strategy'?"),
        ({"guard.distance_gian": 0.1}, "did you mean 'guard.distance_gain'?"),
        ({"rate": 0.0}, "out of range"),
        ({"guard.radius": -1.0}, "out of range"),
        ({"rate": "fast"}, "rate"),
    ],
)
def test_bad_parameters_are_refused(
    declared: Callable[..., Node], given: dict[str, Any], says: str
) -> None:
    with pytest.raises((InputError, ParameterException)) as caught:
        declared(**given)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "parameter 'bundle' is empty"),
        ({"bundle": "no/where.bundle"}, "does not exist"),
        ({"bundle": "TINY"}, "reference.safetensors"),
        ({"bundle": "COLOURS", "strategy": "input"}, "only fieldsight-run adapt can do"),
        ({"bundle": "COLOURS", "state_folder": "USED"}, "another adapter node uses this folder"),
    ],
)
def test_what_cannot_be_learnt_with_is_refused(
    declared: Callable[..., Node],
    bundle_path: Path,
    colours_bundle: Path,
    tmp_path: Path,
    given: dict[str, str],
    says: str,
) -> None:
    used = StateFolder(tmp_path / "used")
    known = {"TINY": str(bundle_path), "COLOURS": str(colours_bundle), "USED": str(used.path)}
    given = {"state_folder": str(tmp_path / "state"), "priority": "normal"} | given
    with pytest.raises(InputError) as caught:
        declared(AdapterNode, **{name: known.get(value, value) for name, value in given.items()})
    assert says in str(caught.value)
    used.close()


# State and priority


def test_every_node_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_folder("/front/adapter") == Path("/state/fieldsight/front/adapter")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_folder("/adapter") == Path.home() / ".local/state/fieldsight/adapter"


def test_a_folder_is_free_again_when_its_node_is_gone(tmp_path: Path) -> None:
    first = StateFolder(tmp_path / "state")
    with pytest.raises(InputError, match="another adapter node"):
        StateFolder(tmp_path / "state")
    first.frozen = True
    first.close()
    second = StateFolder(tmp_path / "state")
    assert second.frozen and not second.problems.count
    second.frozen = False
    second.close()
    assert not StateFolder(tmp_path / "state").frozen


def test_a_store_that_fails_is_counted_until_it_works_again(
    tmp_path: Path, colours_bundle: Path
) -> None:
    (tmp_path / "state").write_text("")
    folder = StateFolder(tmp_path / "state")
    assert folder.problems.count == 1 and "File exists" in folder.problems.last
    store = folder.store(open_bundle(colours_bundle))
    with pytest.raises(InputError):
        store.save(np.ones(12))
    assert folder.problems.count == 2
    (tmp_path / "state").unlink()
    assert store.save(np.ones(12)) == 1 and folder.problems.last == ""


@pytest.mark.parametrize(
    ("name", "nice", "policy"),
    [("normal", 0, os.SCHED_OTHER), ("low", 19, os.SCHED_OTHER), ("idle", 19, os.SCHED_IDLE)],
)
def test_priorities_hold_for_every_thread(name: str, nice: int, policy: int) -> None:
    program = (
        "import os, threading\n"
        "from fieldsight.background import set_priority\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        f"print(set_priority({name!r}))\n"
        "threads = [int(t) for t in os.listdir('/proc/self/task')]\n"
        "assert len(threads) >= 2\n"
        "print({(os.getpriority(0, t), os.sched_getscheduler(t)) for t in threads})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE
    )
    assert done.returncode == 0, done.stderr
    expected = max(nice, os.getpriority(os.PRIO_PROCESS, 0)), policy
    assert done.stdout.splitlines()[-1] == str({expected})


def test_a_process_that_gets_no_time_knows() -> None:
    """Beside one that never rests, on the same core."""
    busy = "import os; os.sched_setaffinity(0, {CORE})\nwhile True: pass\n"
    idle = (
        "import os, time; os.sched_setaffinity(0, {CORE})\n"
        "from fieldsight.background import ProcessorShare, set_priority\n"
        "share = ProcessorShare()\n"
        "assert share() is None\n"
        "set_priority('low')\n"
        "while share() is None: pass\n"
        "print(share())\n"
    )
    core = str(max(os.sched_getaffinity(0)))
    other = subprocess.Popen([sys.executable, "-c", busy.replace("CORE", core)])
    try:
        done = subprocess.run(
            [sys.executable, "-c", idle.replace("CORE", core)],
            capture_output=True,
            text=True,
            cwd=PACKAGE,
        )
    finally:
        other.kill()
        other.wait()
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) < 0.3
