"""Batch norms that are part of the convolution before them, as exporters fold them, too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from edge_runtime.student import Student


@torch.no_grad()
def norm_pairs(student: Student) -> list[tuple[str, str]]:
    """Names of convolutions, and of the batch norms that take what they give, and nothing else.

    Found by watching a pass under an adapter: what it changes on the way is another tensor.
    """
    given: list[tuple[Tensor, str]] = []  # holds the tensors, so that none is taken for another
    takers: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}

    def gives(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: given.append((output, name))

    def takes(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            source = next((by for tensor, by in given if tensor is inputs[0]), "")
            takers.setdefault(source, []).append(name)
            sources.setdefault(name, []).append(source)

        return note

    handles = []
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(gives(name), prepend=True))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(takes(name)))
    student(torch.zeros(1, 64, 64, 3), torch.ones(student.trunk.adapter_size))
    for handle in handles:
        handle.remove()
    alone = ((set(takers[by[0]]), set(by), name) for name, by in sources.items())
    return [
        (by.pop(), name) for took, by, name in alone if len(took) == len(by) == 1 and by != {""}
    ]


@torch.no_grad()
def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of a convolution that does its batch norm's work, too."""
    assert norm.running_mean is not None and norm.running_var is not None
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip
