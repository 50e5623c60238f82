"""The launch file, run with stand-ins for launch's classes where ROS's own are not installed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "ros2_ws/src/fieldsight/launch/perception.launch.py"
CLASSES = {
    "launch": ("LaunchContext", "LaunchDescription"),
    "launch.actions": ("DeclareLaunchArgument", "OpaqueFunction", "SetEnvironmentVariable"),
    "launch.substitutions": (
        "EnvironmentVariable",
        "LaunchConfiguration",
        "PathJoinSubstitution",
    ),
    "launch_ros": (),
    "launch_ros.actions": ("LifecycleNode", "Node"),
    "launch_ros.parameter_descriptions": ("ParameterValue",),
    "launch_ros.substitutions": ("FindPackageShare",),
}


class Given:
    """Keeps what it was made with; as a configuration it looks itself up."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        self.args, self.fields = args, fields

    def perform(self, context: dict[str, str]) -> str:
        return context[self.args[0]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the launch file with arguments; gives the parameters of each executable."""
    for name, classes in CLASSES.items():
        module = ModuleType(name)
        for kind in classes:
            setattr(module, kind, type(kind, (Given,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    found = runpy.run_path(str(LAUNCH))
    description = found["generate_launch_description"]()
    arguments = [a for a in description.args[0] if type(a).__name__ == "DeclareLaunchArgument"]
    defaults = {a.args[0]: a.fields["default_value"] for a in arguments}
    choices = {a.args[0]: a.fields.get("choices") for a in arguments}

    def launch(**given: str) -> dict[str, Any]:
        assert set(given) <= set(defaults)
        assert all(choices[name] is None or value in choices[name] for name, value in given.items())
        nodes = found["start_nodes"](defaults | given)
        return {node.fields["executable"]: node.fields for node in nodes}

    return launch


def parameters(node: dict[str, Any]) -> dict[str, Any]:
    """What the node gets, read as launch reads it: plain text is YAML, typed text is text."""
    _, values = node["parameters"]
    return {
        name: value.args[0]
        if type(value).__name__ == "ParameterValue" and value.fields["value_type"] is str
        else (yaml.safe_load(value) if isinstance(value, str) else value)
        for name, value in values.items()
    }


def test_the_shadow_is_the_default(launched: Any) -> None:
    nodes = launched(bundle="/data/1234", image="/left/image_raw")
    assert set(nodes) == {"perception", "adapter"}
    assert parameters(nodes["perception"]) == {"bundle": "/data/1234", "autostart": True}
    assert parameters(nodes["adapter"]) == {
        "bundle": "/data/1234",
        "mode": "shadow",
        "perception": "perception",
        "task": "all",
    }
    for node in nodes.values():
        assert ("image", "/left/image_raw") in node["remappings"]
    assert nodes["adapter"]["respawn"] and "respawn" not in nodes["perception"]


def test_on_stays_a_word_and_off_starts_no_adapter(launched: Any) -> None:
    nodes = launched(adapt="on", task="segmentation", name="1", state_folder="~", rectify="none")
    assert set(nodes) == {"segmenter", "adapter"}
    found = parameters(nodes["adapter"])
    assert (found["mode"], found["perception"], found["state_folder"]) == ("on", "1", "~")
    assert found["rectify"] == "none" and found["task"] == "segmentation"
    assert set(launched(adapt="off")) == {"perception"}
    assert nodes["segmenter"]["name"] == "1" and nodes["adapter"]["name"] == "adapter"
