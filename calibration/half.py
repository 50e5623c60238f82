"""A strongly typed FP16 version of a network: convolutions in half precision, the rest where safe.

TensorRT builds such a file as it stands: every tensor's type is written in it, and a Cast stands
wherever two types meet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from graphlib import TopologicalSorter

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from edge_runtime.errors import InputError

HALF_MAX = 65504.0  # largest finite FP16 value
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}) | _QUANTISED
# They move or pick values and change none, so that they may take the type of what they are given.
_EXACT = frozenset(
    "ArgMax Concat Expand Flatten Gather GatherElements GatherND Identity Max MaxPool ReduceMax "
    "Relu Reshape Slice Split Squeeze TopK Transpose Unsqueeze Where".split()
)
# Long sums, and functions whose range or slope is beyond FP16 even where their input is not.
_ALWAYS_FLOAT = frozenset(
    "CumSum Exp GlobalAveragePool GroupNormalization InstanceNormalization LayerNormalization Log "
    "LogSoftmax LpNormalization Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMean "
    "ReduceProd ReduceSum ReduceSumSquare Softmax Softplus Sqrt".split()
)
_HALF_SCALES_OPSET = 19  # the first whose QuantizeLinear and DequantizeLinear take FP16 scales


def to_half(model: ModelProto, keep_float: Collection[str] = ()) -> ModelProto:
    """Convert a network to FP16 where that is safe; inputs and outputs keep names and types.

    In FP16 run the convolutions and matrix products and what lies between them; Q/DQ pairs count
    as such, so that they stay beside the layer they belong to. In FP32 stay what prepares the image
    before the first of them, what turns the last one's result into boxes, scores and statistics,
    long sums, and nodes with a constant beyond FP16. The conversion is ONNX Runtime's
    (`onnxruntime.transformers.float16`), after which every detour of an FP32 value through FP16
    is taken out.

    Args:
        model: A network in FP32; it is left as it is. Quantised networks of opset 18 or lower
            become opset 19, where scales may be FP16.
        keep_float: Names of nodes to keep in FP32.

    Returns:
        The network, sorted and checked.

    Raises:
        InputError: The network is FP16 already, has no such node, or cannot be converted.
    """
    source = prepare(model)
    if unknown := set(keep_float) - {node.name for node in source.graph.node}:
        raise InputError(f"the network has no node '{min(unknown)}' to keep in FP32")
    half = half_nodes(source, {*keep_float, *beyond_half(source)})
    _separate_constants(source, half)
    floats = [node.name for node in source.graph.node if node.name not in half]
    result = convert_float_to_float16(
        source, keep_io_types=True, op_block_list=[], node_block_list=floats
    )
    _drop_round_trips(result.graph)
    _sort(result.graph)
    del result.graph.value_info[:]
    try:
        result = onnx.shape_inference.infer_shapes(result, strict_mode=True)
        onnx.checker.check_model(result, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise InputError(f"the network cannot be converted to FP16: {error}") from None
    return result


def prepare(model: ModelProto) -> ModelProto:
    """A copy whose nodes all have names and whose tensors all have types.

    Raises:
        InputError: The network holds FP16 already or is not valid ONNX.
    """
    if not model.graph.node or not model.opset_import:
        raise InputError("not an ONNX network: it holds no node or no opset")
    if any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        raise InputError("networks with branches or loops (If, Loop, Scan) cannot be converted")
    copy = ModelProto()
    copy.CopyFrom(model)
    for index, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    opset = max((o.version for o in copy.opset_import if o.domain in ("", "ai.onnx")), default=0)
    try:
        onnx.checker.check_model(copy)
        if opset < _HALF_SCALES_OPSET and any(n.op_type in _QUANTISED for n in copy.graph.node):
            copy = onnx.version_converter.convert_version(copy, _HALF_SCALES_OPSET)
        copy = onnx.shape_inference.infer_shapes(copy, strict_mode=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        onnx.version_converter.ConvertError,
        RuntimeError,  # what onnx's C++ part raises beside those
    ) as error:
        raise InputError(f"not a network that can be converted to FP16: {error}") from None
    if TensorProto.FLOAT16 in tensor_types(copy).values():
        raise InputError("the network holds FP16 tensors already; convert the FP32 network")
    constants = {constant.name for constant in copy.graph.initializer}
    for value in [v for v in copy.graph.value_info if v.name in constants]:
        copy.graph.value_info.remove(value)  # the converter would cast the constants it leaves FP32
    return copy


def tensor_types(model: ModelProto) -> dict[str, int]:
    """Element type (`TensorProto.DataType`) of each input, constant, tensor and output."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    return types | {constant.name: constant.data_type for constant in graph.initializer}


def half_nodes(model: ModelProto, keep_float: Collection[str] = ()) -> set[str]:
    """Names of the nodes that run in FP16 if their values allow it; see `to_half`.

    Args:
        model: From `prepare`; its nodes are sorted, as ONNX demands.
        keep_float: Names of nodes that do not.
    """
    types, nodes = tensor_types(model), model.graph.node
    to_compute = _leading_to(nodes, {o for n in nodes if n.op_type in _COMPUTE for o in n.output})
    to_float_output = _leading_to(
        nodes, {v.name for v in model.graph.output if _is_float(types, v.name)}
    )
    image = _depending_on(
        nodes, {v.name for v in model.graph.input if not _is_float(types, v.name)}
    )
    computed = _depending_on(nodes, set(), _COMPUTE)
    half: set[str] = set()
    in_half: set[str] = set()
    for node in nodes:
        name = node.name
        given = [i for i in node.input if _is_float(types, i)]
        if name in keep_float or node.op_type in _ALWAYS_FLOAT:
            chosen = False
        elif name in to_compute:
            chosen = node.op_type in _COMPUTE or name in computed or name not in image
        elif node.op_type in _EXACT:
            chosen = bool(given) and in_half.issuperset(given)
        else:  # towards a mask of class indices alone
            chosen = name not in to_float_output and any(i in in_half for i in given)
        if chosen:
            half.add(name)
            in_half.update(node.output)
    return half


def _is_float(types: dict[str, int], name: str) -> bool:
    return types.get(name) == TensorProto.FLOAT


def _leading_to(nodes: Sequence[NodeProto], tensors: set[str]) -> set[str]:
    """Names of the nodes that any of `tensors` depends on, their producers included."""
    wanted, names = set(tensors), set()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            names.add(node.name)
            wanted.update(node.input)
    return names


def _depending_on(
    nodes: Sequence[NodeProto], tensors: set[str], operators: Collection[str] = frozenset()
) -> set[str]:
    """Names of the nodes that depend on any of `tensors` or on a node of `operators`."""
    reached, names = set(tensors), set()
    for node in nodes:
        if node.op_type in operators:
            reached.update(node.output)
        if reached.intersection(node.input):
            names.add(node.name)
            reached.update(node.output)
    return names


def beyond_half(model: ModelProto) -> set[str]:
    """Names of the nodes that hold or read a finite constant that FP16 cannot hold."""
    constants = [(constant.name, constant) for constant in model.graph.initializer]
    constants += [
        (node.output[0], attribute.t)
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    ]
    large = set()
    for name, constant in constants:
        if constant.data_type == TensorProto.FLOAT:
            values = np.abs(numpy_helper.to_array(constant))
            if (values[np.isfinite(values)] > HALF_MAX).any():
                large.add(name)
    return {n.name for n in model.graph.node if large.intersection((*n.input, *n.output))}


def _separate_constants(model: ModelProto, half: set[str]) -> None:
    """Give FP32 nodes copies of the constants that they share with FP16 nodes."""
    graph = model.graph
    constants = {c.name: c for c in graph.initializer if c.data_type == TensorProto.FLOAT}
    shared = {i for n in graph.node if n.name in half for i in n.input} & constants.keys()
    copied: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.name not in half and name in shared:
                node.input[index] = f"{name}_fp32"
                copied.add(name)
    for name in sorted(copied):
        copy = graph.initializer.add()
        copy.CopyFrom(constants[name])
        copy.name = f"{name}_fp32"


def _drop_round_trips(graph: GraphProto) -> None:
    """Let FP32 nodes hand each other FP32 values; the converter sends all through FP16.

    The source network holds no FP16, so that every Cast pair up and down is the converter's.
    """
    producer = {output: node for node in graph.node for output in node.output}
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    gone: list[NodeProto] = []
    for node in graph.node:
        first = producer.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if first is None or not _casts_to(first, TensorProto.FLOAT16):
            continue
        source, result = first.input[0], node.output[0]
        if result not in outputs:
            renamed[result] = source
        elif source in producer and source not in outputs and source not in renamed:
            renamed[source] = result
        else:
            continue
        gone.append(node)
    for node in gone:
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                while name in renamed:
                    name = renamed[name]
                names[index] = name
    used = outputs.union(*(node.input for node in graph.node))
    for node in [n for n in graph.node if _casts_to(n, TensorProto.FLOAT16)]:
        if node.output[0] not in used:
            graph.node.remove(node)


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind


def _sort(graph: GraphProto) -> None:
    """Put every node behind those that make its inputs."""
    position = {output: i for i, node in enumerate(graph.node) for output in node.output}
    nodes = list(graph.node)
    order = TopologicalSorter(
        {i: {position[t] for t in n.input if t in position} for i, n in enumerate(nodes)}
    )
    ordered = [nodes[i] for i in order.static_order()]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
