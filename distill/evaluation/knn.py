"""Weighted k-nearest-neighbour classification: what features are worth without any training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.evaluation.checks import checked, class_count

_CHUNK = 2048  # test vectors compared at a time, so that memory does not follow their number


@torch.no_grad()
def knn_predictions(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Classes, int64 [M], voted by the ``k`` nearest training vectors.

    A neighbour at cosine similarity s votes with weight exp(s / temperature) (Wu et al. 2018,
    section 3.4; k and temperature as DINO, Caron et al. 2021, evaluates). Exact search by matrix
    product; with fewer than ``k`` training vectors all of them vote.

    Args:
        train: [N, D] training vectors, of any length.
        train_labels: integer [N].
        test: [M, D].
    """
    train, train_labels = checked(train, train_labels, "train")
    test = checked(test, None, "test")[0].to(train)
    classes = class_count(train_labels)
    bank = F.normalize(train, dim=1)
    votes_of = F.one_hot(train_labels, classes).to(train)
    found = []
    for part in F.normalize(test, dim=1).split(_CHUNK):
        similarity, index = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        # Against the nearest one, so that no weight overflows; the order of votes is unchanged.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        found.append(torch.einsum("mk,mkc->mc", weight, votes_of[index]).argmax(1))
    return torch.cat(found)


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of the test vectors [M, D] that `knn_predictions` classifies as labelled.

    Raises:
        InputError: sizes that do not agree, features that are not finite.
    """
    test, test_labels = checked(test, test_labels, "test")
    found = knn_predictions(train, train_labels, test, k, temperature)
    return float((found == test_labels.to(found.device)).double().mean())
