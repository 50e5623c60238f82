"""Adversarial images within a small distance of the real ones: FGSM and PGD."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Images float [B, 3, H, W] in 0..1 to logits [B, C], differentiable.
Classifier = Callable[[Tensor], Tensor]


def fgsm(classify: Classifier, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One step along the sign of the gradient (Goodfellow et al. 2015, section 4).

    Args:
        classify: the model; it should be in evaluation mode.
        images: float [B, 3, H, W] in 0..1.
        labels: int64 [B].
        epsilon: largest change of a value, of 1.

    Returns:
        Images within ``epsilon`` of the given ones and within 0..1.
    """
    return (images + epsilon * _ascent(classify, images, labels)).clamp(0, 1)


def pgd(
    classify: Classifier,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int = 10,
    seed: int = 0,
) -> Tensor:
    """Projected gradient descent in the L-infinity ball (Madry et al. 2018, section 2.1).

    Starts at a random point of the ball; a step is 2.5 epsilon / steps, as there in section 5.
    Arguments and result as of `fgsm`.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    found = (images + epsilon * (2 * noise - 1)).clamp(0, 1)
    for _ in range(steps):
        found = found + 2.5 * epsilon / steps * _ascent(classify, found, labels)
        found = found.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    return found


def _ascent(classify: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Sign of the loss's gradient; the model's own gradients are left as they are."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        loss = F.cross_entropy(classify(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient.sign()
