"""New weights in an exported graph: the same nodes, other initialisers.

The exporter folds each batch norm into the convolution before it and names what it folded after
the convolution's weight. The same folding, done again on other weights, gives the initialisers of a
fresh export, without an exporter on the robot; and a graph whose nodes stay as they are keeps its
speed and its verdict under TensorRT. The old weights are folded first: only if that gives the
graph's own initialisers is the graph one that this module understands.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from timm.utils import reparameterize_model
from torch import nn

from edge_runtime.adaptation.folding import folded, norm_pairs
from edge_runtime.adaptation.network import run
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.student import Student

_PREFIX = "student."  # of the exported names: the student is a part of the deployed network
_BIAS = "_bias"
_AGREES = 1e-4  # of the largest value of a tensor


def refold(model: bytes, old: Student, new: Student, size: tuple[int, int]) -> bytes:
    """Replace the weights in a bundle's FP32 graph.

    Args:
        model: The ONNX file, exported from `old`.
        old: The student that was exported.
        new: The same student with other weights.
        size: Network input, (height, width).

    Returns:
        The ONNX file as an export of `new` would have it.

    Raises:
        InputError: The package onnx is absent.
        RefusedError: The graph does not hold the weights of `old`, or not in a known way.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise InputError("writing the graph needs onnx: pip install 'fieldsight[adapt]'") from None
    proto = onnx.load_from_string(model)
    held = {entry.name: entry for entry in proto.graph.initializer}
    before, after = _deployed(old, size), _deployed(new, size)
    _check_coverage(before, held)
    written: dict[str, np.ndarray] = {}
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            key = _key(node, place, before)
            if key is None or name not in held:
                continue
            _check_same(name, numpy_helper.to_array(held[name]), before[key])
            if not np.array_equal(written.get(name, after[key]), after[key]):
                # The exporter lets equal tensors share a name; they are equal no longer.
                node.input[place] = name = f"{name}.{node.name}"
            written[name] = after[key]
    for name, array in written.items():
        if name in held:
            held[name].CopyFrom(numpy_helper.from_array(array, name))
        else:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto.SerializeToString()


def _key(node: Any, place: int, weights: dict[str, np.ndarray]) -> str | None:
    """Which weight of the network a node takes at one of its places, if any."""
    if node.op_type == "Conv" and place == 2:
        return f"{node.input[1]}{_BIAS}" if f"{node.input[1]}{_BIAS}" in weights else None
    return node.input[place] if node.input[place] in weights else None


def _deployed(student: Student, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The network's parameters as the exporter folds them, by the names it gives them.

    The bias of a convolution is found under its weight's name and `_BIAS`.
    """
    ready = copy.deepcopy(student).cpu().eval()
    ready.trunk.body = reparameterize_model(ready.trunk.body, inplace=True)
    ready.requires_grad_(True)
    modules = dict(ready.named_modules())
    pairs = dict(norm_pairs(ready))
    inside = {name for pair in pairs.items() for name in pair}
    weights: dict[str, np.ndarray] = {}
    for name in sorted(_used(ready, size)):
        module = modules[name]
        if isinstance(module, nn.Conv2d):
            weight, bias = module.weight, module.bias
            if name in pairs:
                norm = modules[pairs[name]]
                assert isinstance(norm, nn.BatchNorm2d)
                weight, bias = folded(module, norm)
            weights[f"{_PREFIX}{name}.weight"] = weight.detach().numpy()
            if bias is not None:
                weights[f"{_PREFIX}{name}.weight{_BIAS}"] = bias.detach().numpy()
        elif name not in inside:
            for part, parameter in module.named_parameters(recurse=False):
                weights[f"{_PREFIX}{name}.{part}"] = parameter.detach().numpy()
    return weights


def _used(student: Student, size: tuple[int, int]) -> set[str]:
    """Names of the modules that matter.

    Those whose parameters no output depends on are not in the graph: the finest level of the
    pyramid, for instance, where there is no segmentation.
    """
    outputs = run(student, torch.zeros(1, *size, 3))
    maps = [outputs.segmentation, *(outputs.scores or []), *(outputs.boxes or [])]
    total = torch.stack([m.sum() for m in maps if m is not None]).sum()
    names, parameters = zip(*student.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return {n.rpartition(".")[0] for n, g in zip(names, gradients, strict=True) if g is not None}


def _check_coverage(weights: dict[str, np.ndarray], held: dict[str, Any]) -> None:
    """Refuse a graph in which a weight would be left as it was."""
    lost = [name for name in weights if not name.endswith(_BIAS) and name not in held]
    if lost:
        raise RefusedError(
            f"model.onnx does not hold {lost[0].removeprefix(_PREFIX)} under its name, so it "
            f"cannot be given new weights ({len(lost)} of {len(weights)} are lost); this trunk "
            "has to be consolidated on a workstation and exported again"
        )


def _check_same(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Refuse a graph that was not exported from these weights."""
    near = found.shape == expected.shape and bool(
        np.abs(found - expected).max(initial=0) <= _AGREES * np.abs(expected).max(initial=1e-6)
    )
    if not near:
        raise RefusedError(
            f"model.onnx holds another {name.removeprefix(_PREFIX)} than student.safetensors "
            "gives; they are of two trainings, or of an exporter that folds otherwise: export again"
        )
