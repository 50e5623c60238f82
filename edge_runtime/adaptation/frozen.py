"""A network that learns no more, rewritten so that gradients go through it cheaply.

An adapter, or what gives one, is taught through a frozen network. What that network keeps for its
own learning is then only in the way: batch norms, which are an affine map by now, and strides,
whose way back CPUs take slowly.
"""

from __future__ import annotations

import copy
import logging

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, nn

from edge_runtime.adaptation.folding import folded, norm_pairs
from edge_runtime.adaptation.network import combine, run
from edge_runtime.student import Student

log = logging.getLogger(__name__)
_ROUNDING = 1e-3  # of the largest value
_CONVOLUTIONS = nn.Conv2d, Conv2dSame
_NORMS = nn.BatchNorm2d, BatchNormAct2d


def freeze(student: Student, strides: bool = False) -> Student:
    """A copy of a student that says the same, to rounding, and cannot learn.

    Batch norms that directly follow a convolution become part of it, which takes a third of a
    step on CPUs away.

    Args:
        student: The network.
        strides: Whether depthwise convolutions with a stride compute every output and leave out
            those between. In bfloat16 oneDNN's way back through a stride takes longer than all
            that work, in float32 it does not.

    Returns:
        In evaluation mode. It is not rewritten where that would change what it says.
    """
    plain = copy.deepcopy(student).eval().requires_grad_(False)
    frozen = copy.deepcopy(plain)
    for conv, norm in norm_pairs(frozen):
        _fold(frozen, conv, norm)
    if strides:
        for name, module in list(frozen.named_modules()):
            if type(module) in _CONVOLUTIONS and _strided(module):
                frozen.set_submodule(name, Dense(module))
    if _alike(plain, frozen):
        return frozen
    log.warning("%s cannot be rewritten to learn through it faster", student.spec.trunk)
    return plain


@torch.no_grad()
def _alike(one: Student, other: Student) -> bool:
    """Whether two students say the same of an image under an adapter."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8))
    adapter = torch.linspace(0.5, 1.5, one.trunk.adapter_size)
    apart: list[float] = []

    def compare(a: Tensor, b: Tensor) -> Tensor:
        apart.append(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)))
        return a

    combine(compare, run(one, image, adapter), run(other, image, adapter))
    return max(apart) <= _ROUNDING


def _fold(student: Student, conv_name: str, norm_name: str) -> None:
    """Make a batch norm part of the convolution before it, unless it is an adapter point."""
    conv, norm = student.get_submodule(conv_name), student.get_submodule(norm_name)
    if norm._forward_hooks or type(norm) not in _NORMS:
        return
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    conv.weight, bias = folded(conv, norm)
    conv.register_parameter("bias", bias)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    student.set_submodule(norm_name, rest)


def _strided(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise, has a stride and can be computed by `Dense`."""
    if conv._forward_hooks or conv.padding_mode != "zeros":
        return False
    depthwise = conv.groups == conv.in_channels > 1
    return depthwise and max(conv.stride) > 1


class Dense(nn.Module):
    """A convolution with a stride, computed without it.

    Args:
        conv: Without padding other than by zeros.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if isinstance(conv, Conv2dSame):
            x = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
        x = F.conv2d(x, conv.weight, conv.bias, 1, conv.padding, conv.dilation, conv.groups)
        return x[..., :: conv.stride[0], :: conv.stride[1]]
