"""The layers of a network that can be quantised, by names that an engineer recognises."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import quant_pre_process

from edge_runtime.errors import InputError

_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_SCALING = ("BatchNormalization", "Mul")  # by an adapter; the latter in older bundles
QUANTISED = ("Conv", "MatMul", "Gemm", "Add")


@dataclass(frozen=True, slots=True)
class Layer:
    """A quantisable operation.

    Attributes:
        node: Name of the ONNX node.
        name: Where its weights come from in the student, else the node's name.
        operator: ONNX operator.
        macs: Multiply-add operations of one inference; 0 for sums.
    """

    node: str
    name: str
    operator: str
    macs: int


def prepare(model: Path) -> ModelProto:
    """Load a network with shapes inferred and constants folded, as the quantisers need it.

    Raises:
        InputError: It is no ONNX network, or ONNX Runtime cannot simplify it.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "prepared.onnx"
        try:
            # Shapes are static; symbolic inference adds nothing and fails on top K.
            quant_pre_process(str(model), str(out), skip_symbolic_shape=True)
            return onnx.load(out)
        except Exception as error:  # ONNX Runtime's and protobuf's errors share no base class
            raise InputError(f"{model}: cannot be prepared for calibration: {error}") from None


def tensor_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes of a network's tensors by name; those with unknown sizes are left out."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if all(sizes):
            shapes[value.name] = tuple(sizes)
    shapes.update({t.name: tuple(t.dims) for t in model.graph.initializer})
    return shapes


def open_session(model: ModelProto, literal: bool = True) -> ort.InferenceSession:
    """A network on ONNX Runtime's CPU provider.

    Args:
        model: Any network.
        literal: Compute Q/DQ pairs as they are written; see `OnnxRuntimeEngine`.
    """
    options = ort.SessionOptions()
    if literal:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3  # FP16 and Q/DQ files make it warn of every constant
    content = model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def quantisable_layers(model: ModelProto) -> list[Layer]:
    """The layers that INT8 is for, in the order of execution.

    These are convolutions, products, and sums of feature maps. What the adapter scales and shifts,
    what statistics are computed from, and the arithmetic of boxes stay in float: sums count only
    between two maps that both depend on the image.
    """
    shapes = tensor_shapes(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    from_image = _downstream(model, ["image"])
    useful = _upstream(model, [o.name for o in model.graph.output if o.name != "statistics"])
    found = []
    for node in model.graph.node:
        if node.op_type not in QUANTISED or node.output[0] not in useful:
            continue
        shape = shapes.get(node.output[0], ())
        maps = [i for i in node.input[:2] if i in from_image]
        if node.op_type == "Add" and (len(maps) < 2 or len(shape) != 4):
            continue
        if not maps:
            continue
        found.append(Layer(node.name, _name(node, weights), node.op_type, _macs(node, shapes)))
    return found


def map_nodes(model: ModelProto) -> list[str]:
    """Names of the nodes from the first convolution on that turn feature maps into feature maps.

    What scales and shifts for the adapter is none of them: it stays in float, and so do statistics
    and the arithmetic of boxes.
    """
    shapes = tensor_shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer} | {""}
    computed = _downstream(model, _first_outputs(model, "Conv"))
    useful = _upstream(model, [o.name for o in model.graph.output if o.name != "statistics"])
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "Conv" or computed.issuperset(set(node.input) - constants))
        and node.output[0] in useful & computed
        and len(shapes.get(node.output[0], ())) == 4
    ]


def ahead_of_adapter(model: ModelProto, points: int = 2) -> frozenset[str]:
    """Names of the nodes that lie ahead of the second point that an adapter reaches.

    In fog or darkness the maps ahead of the first span a few of the 255 levels of INT8, and what
    adapters amplify behind it would be rounding; a part is left for the second to amplify. None
    where the network takes no adapter.

    Args:
        model: From `prepare`.
        points: How many points count, at most; fewer where the network has fewer.
    """
    maps, vectors = _downstream(model, ["image"]), _downstream(model, ["adapter"])
    vectors -= maps
    scaled = [
        [name for name in node.input if name in maps]
        for node in model.graph.node
        if node.op_type in _SCALING and vectors.intersection(node.input)
    ]
    behind = _upstream(model, [name for inputs in scaled[:points][-1:] for name in inputs])
    return frozenset(n.name for n in model.graph.node if n.output[0] in behind)


def all_macs(model: ModelProto) -> int:
    """Multiply-add operations of one inference, all layers."""
    shapes = tensor_shapes(model)
    return sum(_macs(node, shapes) for node in model.graph.node)


def deepest_map(model: ModelProto) -> str:
    """Name of the last feature map of the smallest size that a convolution writes."""
    shapes = tensor_shapes(model)
    maps = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Conv" and len(shapes.get(node.output[0], ())) == 4
    ]
    areas = {name: shapes[name][2] * shapes[name][3] for name in maps}
    spread = {name: area for name, area in areas.items() if area > 1} or areas
    if not spread:
        raise InputError("the network has no convolution of known size to compare images by")
    least = min(spread.values())
    return [name for name, area in spread.items() if area == least][-1]


def expose(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """A copy of the network that has the tensors `names` as outputs, and no others."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(copy)
    known = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    del copy.graph.output[:]
    copy.graph.output.extend(known[name] for name in names)
    return copy


def require_finite(model: ModelProto, frames: Iterable[np.ndarray], adapter: np.ndarray) -> None:
    """Refuse to calibrate on activations that are not finite.

    Args:
        model: From `prepare`.
        frames: uint8 [H, W, 3] of the network's size.
        adapter: float32 [A].

    Raises:
        InputError: Names the first layer whose result is not finite.
    """
    names = {layer.node: layer.name for layer in quantisable_layers(model)}
    layers = {n.output[0]: names[n.name] for n in model.graph.node if n.name in names}
    session = open_session(expose(model, layers))
    for frame in frames:
        values = session.run(list(layers), {"image": frame[None], "adapter": adapter})
        for layer, array in zip(layers.values(), values, strict=True):
            if not np.isfinite(array).all():
                raise InputError(
                    f"layer '{layer}' gives values that are not finite in FP32; nothing can be "
                    "calibrated on them. Check the weights and the frames, then export again"
                )


def _name(node: NodeProto, weights: set[str]) -> str:
    for name in node.input[1:]:
        if name in weights and name.endswith(".weight"):
            return name.removesuffix(".weight").removeprefix("student.")
    return node.name


def _macs(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in _PRODUCTS:
        return 0
    out, weight = shapes.get(node.output[0], ()), shapes.get(node.input[1], ())
    if not out or not weight:
        return 0
    if node.op_type in ("Conv", "ConvTranspose"):
        return int(np.prod(out) * np.prod(weight[1:]))
    inner = weight[-2] if len(weight) > 1 else weight[0]
    if node.op_type == "Gemm":
        inner = shapes.get(node.input[0], (inner,))[-1]
    return int(np.prod(out) * inner)


def _first_outputs(model: ModelProto, operator: str) -> list[str]:
    return [n.output[0] for n in model.graph.node if n.op_type == operator][:1]


def _downstream(model: ModelProto, names: Iterable[str]) -> set[str]:
    """Tensors that depend on any of `names`."""
    found = set(names)
    for node in model.graph.node:  # ONNX lists nodes in the order of execution
        if found.intersection(node.input):
            found.update(node.output)
    return found


def _upstream(model: ModelProto, names: Iterable[str]) -> set[str]:
    """Tensors that any of `names` depends on, themselves included."""
    found = set(names)
    for node in reversed(model.graph.node):
        if found.intersection(node.output):
            found.update(node.input)
    return found
