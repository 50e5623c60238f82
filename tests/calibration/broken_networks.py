"""Ways to make a network that FP16 cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper


def make_overflow(network: ModelProto, factor: float) -> tuple[str, str]:
    """Scale a convolution up and the one behind its ReLU down: the same network in FP32.

    Returns:
        The names of both nodes.
    """
    weights = {tensor.name: tensor for tensor in network.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in network.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def scale(name: str, by: float) -> None:
        values = numpy_helper.to_array(weights[name]) * np.float32(by)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))

    for first in network.graph.node:
        relu = readers.get(first.output[0], [None])[0]
        if first.op_type != "Conv" or relu is None or relu.op_type != "Relu":
            continue
        behind = readers[relu.output[0]]
        if len(behind) == 1 and behind[0].op_type == "Conv":
            for name in first.input[1:]:
                scale(name, factor)
            scale(behind[0].input[1], 1 / factor)
            return first.name, behind[0].name
    raise AssertionError("no two convolutions with a ReLU between them")


def set_nan(network: ModelProto) -> None:
    node = next(node for node in network.graph.node if node.op_type == "Conv")
    for tensor in network.graph.initializer:
        if tensor.name == node.input[1]:
            values = numpy_helper.to_array(tensor).copy()
            values.flat[0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def drown_mask(network: ModelProto) -> None:
    """Add the same large number to every class's logit: nothing to FP32, all to FP16's steps."""
    bias = next(t for t in network.graph.initializer if t.name.endswith("classify.bias"))
    values = numpy_helper.to_array(bias) + np.float32(12000)  # where FP16 steps by 8
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
