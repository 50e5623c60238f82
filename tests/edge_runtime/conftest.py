"""A tiny bundle that obeys the network contract, built without torch, and the command for it."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.bundle import Bundle, create_bundle, identity_adapter, open_bundle

HEIGHT, WIDTH = 48, 64
BOXES = np.array(
    [[8, 8, 24, 24], [9, 8, 25, 24], [9, 8, 25, 24], [40, 20, 60, 40]], dtype=np.float32
)
SCORES = np.array([0.9, 0.8, 0.7, 0.2], dtype=np.float32)
LABELS = np.array([0, 0, 1, 1], dtype=np.int32)


def tiny_network() -> bytes:
    """Constant boxes; mask = strongest of the scaled and shifted channels; channel statistics."""
    constants: dict[str, Any] = {
        "boxes_value": BOXES,
        "scores_value": SCORES,
        "labels_value": LABELS,
        "full": np.float32(255),
        "space": np.array([1, 2], np.int64),
        "zero": np.array([0], np.int64),
        "three": np.array([3], np.int64),
        "six": np.array([6], np.int64),
        "start": np.array([0, 0], np.int64),
        "end": np.array([HEIGHT, WIDTH], np.int64),
        "step": np.array([2, 2], np.int64),
        "flat": np.array([-1], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Div", ["float", "full"], ["x"]),
        node("ReduceMean", ["x", "space"], ["mean"]),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squared"]),
        node("ReduceMean", ["squared", "space"], ["variance"]),
        node("Concat", ["mean", "variance"], ["both"], axis=3),
        node("Reshape", ["both", "flat"], ["statistics"]),
        node("Slice", ["adapter", "zero", "three"], ["scale"]),
        node("Slice", ["adapter", "three", "six"], ["shift"]),
        node("Mul", ["x", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["y"]),
        node("Slice", ["y", "start", "end", "space", "step"], ["coarse"]),
        node("ArgMax", ["coarse"], ["best"], axis=3, keepdims=0),
        node("Squeeze", ["best", "zero"], ["plane"]),
        node("Cast", ["plane"], ["mask"], to=TensorProto.UINT8),
        *(node("Identity", [f"{n}_value"], [n]) for n in ("boxes", "scores", "labels")),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            value("image", TensorProto.UINT8, [1, HEIGHT, WIDTH, 3]),
            value("adapter", TensorProto.FLOAT, [6]),
        ],
        [
            value("boxes", TensorProto.FLOAT, [4, 4]),
            value("scores", TensorProto.FLOAT, [4]),
            value("labels", TensorProto.INT32, [4]),
            value("mask", TensorProto.UINT8, [HEIGHT // 2, WIDTH // 2]),
            value("statistics", TensorProto.FLOAT, [6]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_fields() -> dict[str, Any]:
    """Manifest fields that fit `tiny_network`."""
    return {
        "tasks": ["detection", "segmentation"],
        "input": {"height": HEIGHT, "width": WIDTH},
        "inputs": [
            {"name": "image", "dtype": "uint8", "shape": [1, HEIGHT, WIDTH, 3]},
            {"name": "adapter", "dtype": "float32", "shape": [6]},
        ],
        "outputs": [
            {"name": "boxes", "dtype": "float32", "shape": [4, 4]},
            {"name": "scores", "dtype": "float32", "shape": [4]},
            {"name": "labels", "dtype": "int32", "shape": [4]},
            {"name": "mask", "dtype": "uint8", "shape": [HEIGHT // 2, WIDTH // 2]},
            {"name": "statistics", "dtype": "float32", "shape": [6]},
        ],
        "classes": {
            "detection": [
                {"name": "box", "color": [255, 0, 0]},
                {"name": "ball", "color": [0, 0, 255]},
            ],
            "segmentation": [
                {"name": "red", "color": [255, 0, 0]},
                {"name": "green", "color": [0, 255, 0]},
                {"name": "blue", "color": [0, 0, 255]},
            ],
        },
        "student": {
            "trunk": "none",
            "neck_width": 1,
            "head_width": 1,
            "head_depth": 1,
            "adapter": [{"name": "stem", "channels": 3}],
        },
        "metrics": {"segmentation": {"miou": 0.5}},
    }


def tiny_canary(network: bytes) -> bytes:
    """Two noise images with what the network gives for them."""
    images = np.random.default_rng(1).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    adapter = np.array([1, 1, 1, 0, 0, 0], np.float32)
    rows = [session.run(names, {"image": image[None], "adapter": adapter}) for image in images]
    expected = {
        f"expected_{name}": np.stack([row[index] for row in rows])
        for index, name in enumerate(names)
    }
    buffer = io.BytesIO()
    np.savez(buffer, images=images, **expected)
    return buffer.getvalue()


@pytest.fixture
def run(command_line: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Runs `fieldsight-run` with arguments; gives exit code, stdout and stderr."""
    from edge_runtime import cli

    return partial(command_line, cli.main, "fieldsight-run")


@pytest.fixture(scope="session")
def network() -> bytes:
    """The tiny network as ONNX."""
    return tiny_network()


@pytest.fixture(scope="session")
def canary(network: bytes) -> bytes:
    """The tiny network's canary.npz."""
    return tiny_canary(network)


@pytest.fixture
def fields() -> dict[str, Any]:
    """Manifest fields of the tiny bundle, free to change."""
    return tiny_fields()


@pytest.fixture
def tiny_bundle(tmp_path: Path, network: bytes, canary: bytes, fields: dict[str, Any]) -> Bundle:
    """A whole bundle in a folder of the test's own."""
    files: dict[str, bytes | Path] = {"model.onnx": network, "canary.npz": canary}
    bundle = create_bundle(tmp_path / "tiny.bundle", fields, files)
    assert identity_adapter(bundle.manifest).tolist() == [1, 1, 1, 0, 0, 0]
    return open_bundle(bundle.path)
