"""What features are worth without labels: rank, spectrum, alignment, uniformity, collapse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.evaluation.checks import checked
from edge_runtime.errors import InputError

_EPSILON = 1e-7  # RankMe, equation 2
_WITHIN = 1e-4  # LiDAR's delta, Thilak et al. 2024, section 3
_PAIRS = 4096  # vectors whose pairs uniformity looks at
# Complete collapse: directions agree to a cosine of 1 - 1e-4. Untrained networks stay far above.
LEAST_SPREAD = 0.01
_LEAST_RANK = 1.5  # one direction only


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of values [D] that are made to sum to 1 (Roy & Vetterli 2007)."""
    shares = values.double() / values.double().sum().clamp_min(torch.finfo(torch.double).tiny)
    shares = shares + _EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, equation 2): effective rank of features [N, D], 1 to D.

    The singular values are those of the features as they are, not centred. N must be well above D
    for the figure to be one of the encoder and not of the sample.
    """
    features, _ = checked(features, None, "the", least=2)
    gram = features.double().T @ features.double()
    return effective_rank(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt())


@torch.no_grad()
def alpha_req(features: Tensor) -> float:
    """Exponent a of the eigenvalues' decay i^-a (alpha-ReQ, Agrawal et al. 2022, section 3).

    Eigenvalues of the covariance of features [N, D]; a line in logarithms is fitted from a
    twentieth to a half of their number, past the few large ones and before those of sampling.
    Near 1 is best; well above, few directions carry everything.

    Raises:
        InputError: too few vectors or channels for a line.
    """
    features, _ = checked(features, None, "the", least=2)
    values = torch.linalg.eigvalsh(torch.cov(features.double().T)).flip(0)
    rank = min(len(values), len(features) - 1)
    first, last = max(rank // 20, 1), rank // 2
    if last - first < 3:
        raise InputError(f"alpha-ReQ needs a rank of 8 or more, found {rank}; give more images")
    chosen = values[first:last].clamp_min(torch.finfo(torch.double).tiny).log()
    places = torch.arange(first + 1, last + 1, dtype=torch.double, device=chosen.device).log()
    centred = places - places.mean()
    return float(-(centred * chosen).sum() / (centred**2).sum())


@torch.no_grad()
def lidar(views: Tensor) -> float:
    """LiDAR (Thilak et al. 2024, section 3): effective rank of the linear discriminant matrix.

    Each image is a class of its own, its views are the members: what varies between images counts,
    measured in units of what varies between views of one.

    Args:
        views: [N, Q, D], Q views of each of N images. Above neither N - 1 nor D; so N should
            exceed D. The paper takes 10 to 50 views.

    Raises:
        InputError: another shape, or not finite.
    """
    if views.ndim != 3 or views.shape[0] < 3 or views.shape[1] < 2:
        raise InputError(
            f"LiDAR got views of shape {list(views.shape)}, expected [N, Q, D] with at least "
            "3 images and 2 views"
        )
    checked(views.flatten(0, 1), None, "view")
    x = views.double()
    means = x.mean(1)
    inner = (x - means[:, None]).flatten(0, 1)
    within = inner.T @ inner / len(inner)
    within += _WITHIN * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    between = torch.cov(means.T)
    values, vectors = torch.linalg.eigh(within)
    whitening = vectors / values.clamp_min(_WITHIN).sqrt()
    return effective_rank(torch.linalg.eigvalsh(whitening.T @ between @ whitening).clamp_min(0))


@torch.no_grad()
def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of two views [N, D] of the same images on the unit sphere, 0 to 4.

    Wang & Isola 2020, section 4.1.2, with exponent 2. Lower is better, 0 also means collapse.
    """
    difference = F.normalize(first.float(), dim=1) - F.normalize(second.float(), dim=1)
    return float(difference.pow(2).sum(1).mean())


@torch.no_grad()
def uniformity(features: Tensor, seed: int = 0) -> float:
    """log of the mean of exp(-2 d^2) over pairs of features [N, D] on the unit sphere; 0 down.

    Wang & Isola 2020, section 4.1.2, with t = 2. Lower is better; 0 is collapse. Of more than 4096
    vectors, so many drawn at random.
    """
    features, _ = checked(features, None, "the", least=2)
    if len(features) > _PAIRS:
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        features = features[order[:_PAIRS].to(features.device)]
    unit = F.normalize(features, dim=1)
    squared = torch.pdist(unit).pow(2)
    return float(torch.logsumexp(-2 * squared.double(), 0) - math.log(len(squared)))


@torch.no_grad()
def spread(features: Tensor) -> float:
    """Standard deviation of l2-normalised features [N, D], times the root of D: 0 to 1.

    1 for directions all over the sphere, 0 for a single one (SimSiam, Chen & He 2021, section 4.1).
    """
    unit = F.normalize(features.float(), dim=1)
    return float(unit.var(0, correction=0).sum().clamp_min(0).sqrt())


@torch.no_grad()
def collapse(features: Tensor) -> str | None:
    """Whether features [N, D] of different images have died: the reason, or None.

    Complete collapse is all images at one point (`spread`), dimensional collapse all on one line
    (effective rank of the centred features, Jing et al. 2022).
    """
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad:
        return f"{bad} of {len(features)} embeddings are not finite"
    found = spread(features)
    if found < LEAST_SPREAD:
        return (
            f"all images have the same embedding: the spread of directions is {found:.2g} of 1, "
            f"below {LEAST_SPREAD}"
        )
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    rank = effective_rank(values)
    if features.shape[1] > 2 and rank < _LEAST_RANK:
        return (
            f"all embeddings lie on one line: their effective rank is {rank:.2f} of "
            f"{features.shape[1]}, below {_LEAST_RANK}"
        )
    return None
