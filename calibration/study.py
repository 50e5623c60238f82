"""A bundle's FP32 network with all that is needed to judge changed versions of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto

from calibration.frames import (
    digest,
    domain_distance,
    embed,
    k_centre,
    read_candidates,
    run_statistics,
)
from calibration.judging import AgreementJudge, Figures, Judge, LabelJudge
from calibration.network import Layer, ahead_of_adapter, prepare, quantisable_layers, require_finite
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError, RefusedError

FEWEST, MOST = 16, 512
_FAR = 1.0  # standard deviations between the frames and the training domain
_AGREEMENT_FRAMES = 32
_QUICK_FRAMES = 32

Tick = Callable[..., None]
Stage = Callable[[str, int | None], Tick]  # description, steps -> to be called after each step


def silent(_description: str, _total: int | None) -> Tick:
    """A stage that shows nothing."""
    return lambda *_: None


@dataclass(frozen=True)
class Study:
    """See `open_study`.

    Attributes:
        bundle: The bundle.
        model: Its FP32 network, prepared for quantisation.
        layers: What INT8 is used for within the budget.
        ahead: Nodes that stay in float whatever the budget; see `ahead_of_adapter`.
        frames: Calibration frames, uint8 [H, W, 3] each.
        frames_digest: Of their pixels.
        distance: Of the frames from the training domain, if the bundle has a reference.
        judge: Scores networks on everything there is.
        labelled: The labelled frames behind it, if any.
        agreement: Scores networks by how far they do what FP32 does.
    """

    bundle: Bundle
    model: ModelProto
    layers: list[Layer]
    ahead: frozenset[str]
    frames: list[np.ndarray]
    frames_digest: str
    distance: float | None
    judge: Judge
    labelled: Dataset | None
    agreement: Judge

    @cached_property
    def adapter(self) -> np.ndarray:
        """float32 [A]: the network as trained."""
        return identity_adapter(self.bundle.manifest)

    @cached_property
    def before(self) -> Figures:
        """What the FP32 network scores."""
        return self.judge(self.model)

    def quick(self) -> Judge:
        """A judge on a part of the frames, for the many trials of a sensitivity analysis."""
        if self.labelled is None:
            return self.agreement
        return LabelJudge(self.bundle, self.labelled, _QUICK_FRAMES)


def open_study(
    bundle: Bundle,
    source: str,
    labelled: Dataset | None,
    count: int = 256,
    force: bool = False,
    seed: int = 0,
    stage: Stage = silent,
) -> Study:
    """Read frames, choose a diverse set to calibrate on, and prepare to judge.

    Args:
        bundle: What to calibrate.
        source: Unlabelled frames from where the robot works.
        labelled: Frames to judge on; without them networks are judged by agreement with FP32 on
            frames of the source that were not chosen.
        count: Calibration frames wanted, 16 to 512.
        force: Go on with frames that lie far from the training domain.
        seed: Of the thinning out of long sources.
        stage: Shows progress.

    Raises:
        InputError: There is too little to read, or the network gives values that are not finite.
        RefusedError: The frames are not of the domain the student was trained in.
    """
    if not FEWEST <= count <= MOST:
        raise InputError(f"{count} calibration frames asked for, expected {FEWEST} to {MOST}")
    candidates = read_candidates(bundle, source, seed, stage("reading frames", None))
    model = prepare(bundle.file("model.onnx"))
    adapter = identity_adapter(bundle.manifest)
    embeddings = embed(model, candidates, adapter, stage("comparing frames", len(candidates)))
    # Without labels a part of the frames is set aside to judge on.
    spare = 0 if labelled is not None else min(_AGREEMENT_FRAMES, len(candidates) // 3)
    order = k_centre(embeddings, min(count, len(candidates) - spare))
    chosen = [candidates[i] for i in order]
    require_finite(model, chosen, adapter)
    distance = domain_distance(bundle, run_statistics(model, chosen, adapter))
    if distance is not None and not distance <= _FAR and not force:
        raise RefusedError(
            f"{source}: the frames lie {distance:.1f} standard deviations from the domain the "
            f"student was trained in (at most {_FAR:.1f} expected); calibrate on frames like "
            "those it will see, or use --force if these are"
        )
    rest = np.setdiff1d(np.arange(len(candidates)), order)
    shown = rest if spare else order
    shown = shown[np.unique(np.linspace(0, len(shown) - 1, _AGREEMENT_FRAMES).astype(int))]
    ahead = ahead_of_adapter(model)
    agreement = AgreementJudge(model, [candidates[i] for i in shown], adapter)
    return Study(
        bundle,
        model,
        [layer for layer in quantisable_layers(model) if layer.node not in ahead],
        ahead,
        chosen,
        digest(chosen),
        distance,
        agreement if labelled is None else LabelJudge(bundle, labelled),
        labelled,
        agreement,
    )
