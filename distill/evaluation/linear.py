"""The linear probe: how well one linear layer on frozen features tells the classes apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.checks import checked, class_count

# Inverse strength of the l2 penalty on features of unit variance, weakest last.
_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HELD_BACK = 0.2
_ITERATIONS = 300


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of raw features: ``logits = x @ weight.T + bias``.

    Attributes:
        weight: [C, D], standardisation of the features folded in.
        bias: [C].
        strength: inverse strength of the l2 penalty that was chosen.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def logits(self, features: Tensor) -> Tensor:
        """[N, C] of features [N, D]; differentiable."""
        return features @ self.weight.to(features).T + self.bias.to(features)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of features [N, D] classified as labelled [N]."""
        features, labels = checked(features, labels, "test")
        return float((self.logits(features).argmax(1) == labels).double().mean())


def held_back(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask, bool [N], of ``share`` of the members of each class, drawn at random."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        mask[members[: int(len(members) * share)]] = True
    return mask


def fit_linear(
    train: Tensor,
    train_labels: Tensor,
    seed: int = 0,
    strengths: Sequence[float] = _STRENGTHS,
) -> LinearProbe:
    """Multinomial logistic regression on standardised features, by L-BFGS.

    The l2 penalty is the one that is best on a fifth of every class, held back; then all of
    ``train`` is fitted with it. Test images are never seen. With fewer than five images in every
    class there is nothing to hold back, and the middle penalty is taken.

    Args:
        train: [N, D].
        train_labels: integer [N]; classes that do not occur get logits of -inf.
        seed: of the draw.
        strengths: inverse penalties to choose from.

    Raises:
        InputError: sizes that do not agree, features that are not finite, a single class.
    """
    train, train_labels = checked(train, train_labels, "train", least=2)
    classes = class_count(train_labels)
    y = train_labels.cpu().numpy()
    mean, scale = train.mean(0), train.std(0)
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, torch.ones_like(scale))
    x = ((train - mean) / scale).cpu().numpy()
    aside = held_back(y, _HELD_BACK, seed)
    strength = sorted(strengths)[len(strengths) // 2]
    if aside.any():
        strength = _best(x[~aside], y[~aside], x[aside], y[aside], strengths)
    present, coefficients, intercept = _fit(x, y, [strength])[0]
    weight = torch.zeros(classes, x.shape[1])
    bias = torch.full((classes,), -torch.inf)
    # Back from standardised to raw features, in double precision.
    folded = coefficients / scale.double().cpu().numpy()
    weight[present] = torch.from_numpy(folded).float()
    bias[present] = torch.from_numpy(intercept - folded @ mean.double().cpu().numpy()).float()
    return LinearProbe(weight, bias, float(strength))


def _best(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, strengths: Sequence[float]
) -> float:
    """The strength with the highest accuracy on the held-back part; the strongest penalty of
    equals."""
    order = sorted(strengths)
    right = [
        float((present[(x_test @ coefficients.T + intercept).argmax(1)] == y_test).mean())
        for present, coefficients, intercept in _fit(x, y, order)
    ]
    return order[int(np.argmax(right))]


def _fit(
    x: np.ndarray, y: np.ndarray, strengths: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Classes, coefficients [C, D] and intercepts [C] by strength, each starting from the last."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="lbfgs", max_iter=_ITERATIONS, tol=1e-3, warm_start=True)
    fits = []
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            # A weak penalty may not settle within the iterations; the held-back part judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        coefficients, intercept = model.coef_.astype(float), model.intercept_.astype(float)
        if len(model.classes_) == 2:  # scikit-learn keeps one row: the logit of the second class
            coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
            intercept = np.concatenate([-intercept / 2, intercept / 2])
        fits.append((model.classes_, coefficients, intercept))
    return fits


def linear_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, seed: int = 0
) -> float:
    """Share of the test vectors [M, D] that a probe fitted on ``train`` classifies as labelled.

    See `fit_linear`.
    """
    return fit_linear(train, train_labels, seed).accuracy(test, test_labels)
