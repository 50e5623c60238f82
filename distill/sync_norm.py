"""Batch norm over the global batch on any device; torch's own is for accelerators only."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _total(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total


class SyncedBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of all processes; any shape [N, C, ...].

    Parameters and buffers have the names of the layer it replaces. Gradients flow through the
    statistics, as in one process with the global batch (Ioffe & Szegedy 2015).
    """

    def __init__(self, source: _BatchNorm) -> None:
        super().__init__(
            source.num_features,
            source.eps,
            source.momentum,
            source.affine,
            source.track_running_stats,
        )
        self._parameters.update(source._parameters)
        self._buffers.update(source._buffers)
        self.train(source.training)
        acts = isinstance(source, BatchNormAct2d)
        self.after = nn.Sequential(source.drop, source.act) if acts else nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        del input

    def forward(self, input: Tensor) -> Tensor:
        """Normalised ``input``."""
        if not self.training or not dist.is_initialized():
            normalised: Tensor = super().forward(input)
            return self.after(normalised)
        over = [d for d in range(input.ndim) if d != 1]
        wide = input if input.dtype == torch.float64 else input.float()
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = _total(wide.new_tensor([wide.numel() / wide.shape[1]]))
        mean = _total(wide.sum(over)) / count
        centred = wide - mean.view(shape)
        variance = _total(centred.square().sum(over)) / count
        self._track(mean.detach(), (variance * count / (count - 1).clamp_min(1)).detach())
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return self.after(out.to(input.dtype))

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum or 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise_batch_norms(module: nn.Module, device: torch.device) -> None:
    """Makes all batch norms within ``module`` use the statistics of the global batch, in place."""
    if device.type != "cpu":
        convert_sync_batchnorm(module)
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
                setattr(parent, name, SyncedBatchNorm(child))
