"""What FP16 does to a network's values, measured on a CPU: peaks of tensors, and a rounded twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from calibration.half import HALF_MAX, beyond_half, half_nodes, prepare, tensor_types
from calibration.network import expose, open_session
from edge_runtime.errors import RefusedError

MARGIN = 4.0  # how far the largest value seen must stay below FP16's largest


def peaks(
    model: ModelProto,
    frames: Sequence[np.ndarray],
    adapter: np.ndarray,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Largest magnitude in FP32 of each tensor that an FP16 layer reads or writes.

    Args:
        model: The FP32 network.
        frames: uint8 [H, W, 3] of the network's size.
        adapter: float32 [A], the identity.
        tick: Called after each frame.

    Raises:
        RefusedError: A value is not finite.
    """
    model = prepare(model)
    types, half = tensor_types(model), half_nodes(model)
    constants = {constant.name for constant in model.graph.initializer}
    names = {
        name
        for node in model.graph.node
        if node.name in half
        for name in (*node.input, *node.output)
        if types.get(name) == TensorProto.FLOAT and name not in constants
    } - {value.name for value in model.graph.input}
    ordered = [name for node in model.graph.node for name in node.output if name in names]
    session = open_session(expose(model, ordered))
    feeds = {node.name for node in session.get_inputs()}  # exposing may leave an input unused
    found = dict.fromkeys(ordered, 0.0)
    for frame in frames:
        given = {"image": frame[None], "adapter": adapter}
        values = session.run(ordered, {k: v for k, v in given.items() if k in feeds})
        for name, array in zip(ordered, values, strict=True):
            found[name] = float(np.maximum(found[name], np.abs(array).max()))  # keeps a NaN
            if not np.isfinite(found[name]):
                raise RefusedError(
                    f"tensor '{name}' of the FP32 network is not finite on real frames; nothing "
                    "can be converted on it. Check the weights and the frames, then export again"
                )
        tick()
    return found


def overflowing(model: ModelProto, largest: dict[str, float]) -> list[str]:
    """Nodes that must stay in FP32: those that read or write something too large for FP16.

    A constant is too large where it is beyond FP16's largest value; a tensor where its `peaks`
    come within a factor of `MARGIN` of it: sums within a layer and frames not seen yet go further.
    """
    model = prepare(model)
    half, heavy = half_nodes(model), beyond_half(model)
    large = {name for name, value in largest.items() if value > HALF_MAX / MARGIN}
    return [
        node.name
        for node in model.graph.node
        if node.name in half
        and (node.name in heavy or large.intersection((*node.input, *node.output)))
    ]


def not_finite(model: ModelProto, frames: Sequence[np.ndarray], adapter: np.ndarray) -> str | None:
    """Name of an output that is not finite on one of the frames, or None."""
    session = open_session(model)
    names = [node.name for node in session.get_outputs()]
    for frame in frames:
        values = session.run(names, {"image": frame[None], "adapter": adapter})
        for name, array in zip(names, values, strict=True):
            if not np.isfinite(array).all():
                return name
    return None


def rounded(model: ModelProto) -> ModelProto:
    """An FP32 twin of an FP16 network that rounds every FP16 tensor to FP16.

    ONNX Runtime has few FP16 kernels on the CPU. Where it has none it computes in FP32, and
    between two such layers it does not round, so that the FP16 file itself seems better on a CPU
    than it is and never overflows. The twin rounds after every layer, as a GPU does that
    accumulates in FP32; layers that a GPU fuses round less often.

    Args:
        model: From `to_half`.

    Returns:
        A network with the same inputs and outputs.
    """
    types = tensor_types(model)
    twin = ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    for constant in graph.initializer:
        if constant.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    nodes = list(model.graph.node)
    del graph.node[:], graph.value_info[:]
    for node in nodes:
        copy = graph.node.add()
        copy.CopyFrom(node)
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            copy.attribute[0].i = TensorProto.FLOAT
        for index, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16:
                copy.output[index] = f"{name}_exact"
                for source, result, kind in (
                    (f"{name}_exact", f"{name}_half", TensorProto.FLOAT16),
                    (f"{name}_half", name, TensorProto.FLOAT),
                ):
                    graph.node.append(helper.make_node("Cast", [source], [result], to=kind))
    return twin
