"""Opening and closing TensorRT engines, images for them, and a network TensorRT cannot read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edge_runtime.bundle import Bundle
from edge_runtime.engines import open_engine
from edge_runtime.engines.plan_cache import Header, PlanKey
from edge_runtime.engines.preparing import Prepared
from edge_runtime.engines.tensorrt import TensorRTEngine


def some_image(seed: int = 0) -> np.ndarray:
    """Noise of the tiny bundle's size, uint8 [1, 48, 64, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (1, 48, 64, 3), np.uint8)


def opened(bundle: Bundle, precision: str = "auto") -> TensorRTEngine:
    """The bundle's TensorRT engine; the test closes it."""
    engine = open_engine(bundle, "tensorrt", precision)
    assert isinstance(engine, TensorRTEngine)
    return engine


def done(prepared: Prepared) -> Prepared:
    """What was prepared, with its engine closed."""
    prepared.engine.close()
    return prepared


def key_of(file: Path) -> PlanKey:
    """What a file of the plan cache says it was made for."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[40:44], "little")
    return Header.model_validate_json(raw[44 : 44 + length]).key


def custom_network(fields: dict[str, Any]) -> bytes:
    """The tiny contract with an operator that TensorRT has no importer for."""
    value = helper.make_tensor_value_info
    float_, uint8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=float_),
        helper.make_node("Warp", ["x"], ["y"], name="/neck/warp", domain="com.acme"),
    ]
    graph = helper.make_graph(
        nodes, "custom", [value("image", uint8, [1, 8, 8, 3])], [value("y", float_, [1, 8, 8, 3])]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
