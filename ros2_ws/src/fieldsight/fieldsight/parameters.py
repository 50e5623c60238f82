"""The perception node's parameters: types, descriptions, ranges, and which may change when."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from edge_runtime import InputError
from edge_runtime.engines import PRECISIONS

TASKS = ("all", "detection", "segmentation")
CHOICES = {
    "task": TASKS,
    "precision": PRECISIONS,
    "image_transport": ("raw", "compressed"),
    "rectify": ("bundle", "camera_info", "none"),
}
# May change only while no bundle is loaded; the rest takes effect with the next frame.
STRUCTURAL = ("bundle", "backend", "precision", "threads", "image_transport", "rectify")


def described(
    text: str,
    low: float | None = None,
    high: float | None = None,
    read_only: bool = False,
    choices: Sequence[str] = (),
) -> ParameterDescriptor:
    """A descriptor; the range is one of integers if both ends are."""
    descriptor = ParameterDescriptor(description=text, read_only=read_only)
    if choices:
        descriptor.additional_constraints = f"one of {', '.join(choices)}"
    if isinstance(low, int) and isinstance(high, int):
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    elif low is not None and high is not None:
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return descriptor


def declare(node: Node, task: str) -> None:
    """Declare all parameters, and refuse given ones that do not exist.

    Args:
        node: The node; its overrides give the values.
        task: Default of the parameter `task`.
    """
    when_unloaded = "; changes only while unconfigured"
    declared = {
        "bundle": ("", described(f"folder of the model bundle{when_unloaded}")),
        "backend": (
            "auto",
            described(f"engine that runs the network, 'auto' for the best one{when_unloaded}"),
        ),
        "precision": (
            "auto",
            described(f"precision of the engine{when_unloaded}", choices=PRECISIONS),
        ),
        "threads": (
            0,
            described(f"CPU threads per frame, 0 for the engine's choice{when_unloaded}", 0, 256),
        ),
        "image_transport": (
            "raw",
            described(
                f"'raw' takes 'image', 'compressed' takes 'image/compressed'{when_unloaded}",
                choices=CHOICES["image_transport"],
            ),
        ),
        "rectify": (
            "bundle",
            described(
                "lens to undistort: 'bundle' for the camera that the bundle holds, if any, "
                f"'camera_info' for that of the topic, 'none' for no lens{when_unloaded}",
                choices=CHOICES["rectify"],
            ),
        ),
        "task": (task, described("what to publish", read_only=True, choices=TASKS)),
        "autostart": (False, described("configure and activate on start", read_only=True)),
        "score_threshold": (0.3, described("boxes scoring less are dropped", 0.0, 1.0)),
        "iou_threshold": (
            0.6,
            described("boxes overlapping a better one of their class by more go", 0.0, 1.0),
        ),
        "max_detections": (100, described("most boxes per frame", 1, 10000)),
        "max_age_ms": (
            200,
            described("frames older than this are dropped and counted; 0 keeps all", 0, 600000),
        ),
    }
    node.declare_parameters("", [(name, *rest) for name, rest in declared.items()])
    refuse_unknown(node, declared)


def refuse_unknown(node: Node, declared: Mapping[str, Any]) -> None:
    """Refuse given parameters that were not declared, naming the nearest that was."""
    given = getattr(node, "_parameter_overrides", {})
    for name in given:
        if name in declared or name == "use_sim_time" or name.startswith("qos_overrides."):
            continue
        if node.has_parameter(name):
            continue
        near = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(declared)}"
        raise InputError(f"parameter '{name}' is unknown; {hint}")


def check(parameters: Sequence[Parameter], loaded: bool) -> SetParametersResult:
    """Whether values may be set: choices hold, and structural ones wait for an unloaded node."""
    for parameter in parameters:
        name, value = parameter.name, parameter.value
        if name in STRUCTURAL and loaded:
            reason = f"'{name}' changes only while unconfigured; clean the node up first"
            return SetParametersResult(successful=False, reason=reason)
        if name in CHOICES and value not in CHOICES[name]:
            reason = f"'{name}' is '{value}', expected one of {', '.join(CHOICES[name])}"
            return SetParametersResult(successful=False, reason=reason)
    return SetParametersResult(successful=True)
