"""The ROS package's files, and the interfaces of its underlay."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ros2_ws" / "src" / "fieldsight"
UNDERLAY = ROOT / "ros2_ws" / "underlay" / "vision_msgs"

# ros-perception/vision_msgs 4.1.1
FIELDS = {
    "Point2D": "double x, double y",
    "Pose2D": "vision_msgs/Point2D position, double theta",
    "BoundingBox2D": "vision_msgs/Pose2D center, double size_x, double size_y",
    "ObjectHypothesis": "string class_id, double score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis, "
    "geometry_msgs/PoseWithCovariance pose",
    "Detection2D": "std_msgs/Header header, sequence<vision_msgs/ObjectHypothesisWithPose> "
    "results, vision_msgs/BoundingBox2D bbox, string id",
    "Detection2DArray": "std_msgs/Header header, sequence<vision_msgs/Detection2D> detections",
    "VisionClass": "uint16 class_id, string class_name",
    "LabelInfo": "std_msgs/Header header, sequence<vision_msgs/VisionClass> class_map, "
    "float threshold",
}


@pytest.mark.ros
@pytest.mark.parametrize("name", FIELDS)
def test_interfaces_have_the_standard_fields(name: str) -> None:
    messages = pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")
    fields = getattr(messages, name).get_fields_and_field_types()
    assert ", ".join(f"{kind} {field}" for field, kind in fields.items()) == FIELDS[name]


@pytest.mark.ros
def test_underlay_is_not_built_twice() -> None:
    pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")
    script = ROOT / "scripts" / "build_underlay.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "nothing to build" in done.stdout


def test_entry_points_exist() -> None:
    setup = (PACKAGE / "setup.py").read_text()
    scripts = [line for line in setup.splitlines() if "{NAME}." in line and "=" in line]
    assert len(scripts) == 5
    for line in scripts:
        module, function = line.partition("{NAME}.")[2].strip('",').split(":")
        tree = ast.parse((PACKAGE / "fieldsight" / f"{module}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_package_depends_on_what_it_imports() -> None:
    tree = ElementTree.parse(PACKAGE / "package.xml")
    depends = {element.text for element in tree.iter("exec_depend")}
    assert {"rclpy", "vision_msgs", "sensor_msgs", "launch_ros"} <= depends
    assert "vision_msgs" == ElementTree.parse(UNDERLAY / "package.xml").findtext("name")


def test_launch_file_describes_every_argument() -> None:
    text = (PACKAGE / "launch" / "perception.launch.py").read_text()
    tree = ast.parse(text)
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DeclareLaunchArgument"
    ]
    assert calls and all("description" in {k.arg for k in call.keywords} for call in calls)
    for name in ("bundle", "image", "backend", "task", "score_threshold", "max_age_ms"):
        assert f'"{name}"' in text


@pytest.mark.ros
def test_parameter_file_names_real_parameters_and_their_defaults() -> None:
    rclpy = pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
    pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")
    sys.path.insert(0, str(PACKAGE))
    node_module = importlib.import_module("fieldsight.perception_node")
    text = (PACKAGE / "config" / "perception.yaml").read_text()
    given = yaml.safe_load(text)["/**"]["ros__parameters"]
    context = rclpy.Context()
    rclpy.init(context=context)
    node = node_module.PerceptionNode(context=context)
    try:
        assert given == {name: node.value(name) for name in given}
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_dds_profile_has_room_for_images() -> None:
    tree = ElementTree.parse(PACKAGE / "config" / "fastdds.xml")
    sizes = [int(e.text or 0) for e in tree.iter() if e.tag.endswith("segment_size")]
    kinds = {e.text for e in tree.iter() if e.tag.endswith("}type")}
    assert sizes == [32 * 1024 * 1024]
    assert kinds == {"SHM", "UDPv4"}
