"""Robustness of an encoder with a linear probe, beside that of a baseline."""

from __future__ import annotations

from typing import Any

from distill.data.images import Images
from distill.evaluation.features import drawn, extract
from distill.evaluation.judging import Judgement, JudgeOptions
from distill.evaluation.linear import fit_linear
from distill.evaluation.opening import OpenedEncoder
from distill.evaluation.robustness import (
    JudgedImages,
    ProbedEncoder,
    classification_errors,
    classifier_robustness,
)
from edge_runtime.errors import InputError


def encoder_robustness(
    opened: OpenedEncoder,
    judged: Judgement,
    baseline: OpenedEncoder | None,
    epsilon: float,
    limit: int,
    options: JudgeOptions,
) -> dict[str, Any]:
    """Corruptions and attacks on ``limit`` of the test images; see `classifier_robustness`.

    A baseline's probe is fitted on the same training images; both see the same test images under
    the same corruptions, each at its own size.

    Args:
        epsilon: of the attacks, of 1.

    Raises:
        InputError: there are no classes, or the images are too small to corrupt.
    """
    if judged.probe is None:
        raise InputError(
            "robustness needs classes: give --data (and --test) folders with one subfolder a "
            "class, or shards with .cls"
        )
    seed = options.seed
    chosen = judged.test.indices[drawn(len(judged.test.indices), limit, seed)]
    reference = None
    if baseline is not None:
        images = JudgedImages.of(judged.test_source, chosen, baseline.size)
        classify = _probed(baseline, judged.train_source, judged, options)
        reference = classification_errors(classify, images, seed, options.progress)
    images = JudgedImages.of(judged.test_source, chosen, opened.size)
    figures = classifier_robustness(
        ProbedEncoder(opened.encoder, judged.probe),
        images,
        epsilon,
        reference,
        seed,
        options.progress,
    )
    if baseline is not None:
        figures["baseline"]["name"] = baseline.title
    return figures


def _probed(
    baseline: OpenedEncoder, source: Images, judged: Judgement, options: JudgeOptions
) -> ProbedEncoder:
    found = extract(
        baseline.encoder,
        Chosen(source, judged.train.indices),
        baseline.size,
        progress=options.progress,
    )
    return ProbedEncoder(baseline.encoder, fit_linear(found.pooled, found.labels, options.seed))


class Chosen:
    """Some images of a source, by their indices."""

    def __init__(self, source: Images, indices: Any) -> None:
        self.source, self.indices = source, [int(i) for i in indices]
        self.notes: list[str] = source.notes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Any:
        """A picture, uint8 [H, W, 3] RGB."""
        return self.source.read(self.indices[index])

    def label(self, index: int) -> int | None:
        """Its class."""
        return self.source.label(self.indices[index])

    def name(self, index: int) -> str:
        """Where it lies."""
        return self.source.name(self.indices[index])

    def digest(self) -> str:
        """That of the source with the indices."""
        return f"{self.source.digest()}:{self.indices}"
