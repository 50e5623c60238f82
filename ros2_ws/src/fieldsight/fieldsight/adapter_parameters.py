"""The adapter node's parameters; all but the rate hold for the node's whole life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter

from edge_runtime import InputError
from edge_runtime.adaptation.guard import GuardOptions
from edge_runtime.adaptation.learner import MODES
from edge_runtime.adaptation.limits import Limits
from edge_runtime.adaptation.strategies import strategy_names
from edge_runtime.engines import PRECISIONS
from fieldsight.background import PRIORITIES
from fieldsight.parameters import CHOICES, TASKS, described, refuse_unknown
from fieldsight.state_folder import default_folder

_YAML_WORDS = {False: "off", True: "on"}  # what YAML makes of the unquoted words


def declare(node: Node) -> None:
    """Declare all parameters; refuse unknown ones and impossible values.

    Raises:
        InputError: Says which parameter, and what was expected.
    """
    limits, guard = Limits(), GuardOptions()
    choices = {
        "strategy": tuple(strategy_names()),
        "mode": MODES,
        "task": TASKS,
        "precision": PRECISIONS,
        "image_transport": CHOICES["image_transport"],
        "rectify": CHOICES["rectify"],
        "priority": tuple(PRIORITIES),
    }
    as_perception = "as the perception node has it"
    declared = {
        "bundle": ("", described(f"folder of the model bundle, {as_perception}")),
        "perception": ("perception", described("name of the perception node to give adapters to")),
        "strategy": ("align", described("how adapters are found", choices=choices["strategy"])),
        "mode": (
            "shadow",
            described(
                "'on' gives adapters to use, 'shadow' decides the same and gives none, 'off' "
                "watches drift alone",
                choices=MODES,
            ),
        ),
        "state_folder": (
            "",
            described("keeps adapters and places; empty: under ~/.local/state/fieldsight"),
        ),
        "keep_frames": (
            0,
            described("images to keep there for fieldsight-run consolidate; 0 for none", 0, 100000),
        ),
        "rate": (5.0, described("frames to learn from, per second", 0.1, 100.0)),
        "drift_threshold": (
            0.0,
            described("drift score that is unusual; 0 for what the bundle's source says", 0.0, 2.0),
        ),
        "guard.distance_gain": (
            limits.distance_gain,
            described("share by which statistics must come closer to the source's", 0.0, 1.0),
        ),
        "guard.agreement_gain": (
            limits.agreement_gain,
            described("rise of the agreement of mirror images that is better, too", 0.0, 1.0),
        ),
        "guard.agreement_loss": (
            limits.agreement_loss,
            described("fall of the agreement of mirror images that is refused", 0.0, 1.0),
        ),
        "guard.radius": (
            limits.radius,
            described("most that an adapter moves channels, standard deviations", 0.001, 10.0),
        ),
        "guard.cooldown": (
            guard.cooldown,
            described("frames without promotion after an alarm", 0, 100000),
        ),
        "task": ("all", described(f"what is published, {as_perception}", choices=TASKS)),
        "backend": ("auto", described("engine that tries candidates out")),
        "precision": ("auto", described("precision of that engine", choices=PRECISIONS)),
        "image_transport": (
            "raw",
            described(
                f"'raw' or 'compressed', {as_perception}", choices=choices["image_transport"]
            ),
        ),
        "rectify": (
            "bundle",
            described(f"lens to undistort, {as_perception}", choices=choices["rectify"]),
        ),
        "priority": (
            "idle",
            described("of this process among others", choices=choices["priority"]),
        ),
    }
    _read_mode(node)
    for name, (_, descriptor) in declared.items():
        descriptor.read_only = name != "rate"
    node.declare_parameters("", [(name, *rest) for name, rest in declared.items()])
    refuse_unknown(node, declared)
    for name, known in choices.items():
        if (value := node.get_parameter(name).value) not in known:
            raise InputError(f"parameter '{name}' is '{value}', expected one of {', '.join(known)}")


def _read_mode(node: Node) -> None:
    """YAML, and so `-p mode:=off`, takes the words on and off for booleans: take them back."""
    given: dict[str, Any] = getattr(node, "_parameter_overrides", {})
    if "mode" in given and (word := _YAML_WORDS.get(given["mode"].value)) is not None:
        given["mode"] = Parameter("mode", value=word)


def guard_options(node: Node) -> GuardOptions:
    """The guard as the parameters say."""

    def value(name: str) -> Any:
        return node.get_parameter(f"guard.{name}").value

    names = ("distance_gain", "agreement_gain", "agreement_loss", "radius")
    limits = Limits(**{name: value(name) for name in names})
    return GuardOptions(limits=limits, cooldown=value("cooldown"))


def state_folder(node: Node) -> Path:
    """Where the state is kept."""
    given = node.get_parameter("state_folder").value
    return Path(given).expanduser() if given else default_folder(node.get_fully_qualified_name())
