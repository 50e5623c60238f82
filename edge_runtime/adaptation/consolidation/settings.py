"""Settings of consolidation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ConsolidationSettings(BaseModel):
    """How the weights are tuned.

    Attributes:
        steps: Steps of the optimiser.
        place_frames: Frames of the memory in a batch.
        rehearsed_frames: Labelled source frames in a batch in the place's looks, under the adapter
            that alignment finds there.
        clean_frames: Labelled source frames in a batch as they are and without an adapter, so that
            home is kept.
        crop: Share of each side that a view of the place, or in its looks, keeps; home is learnt
            whole.
        lr: Peak learning rate of AdamW.
        ema: Of the teacher's weights, a step.
        anchor: Pull towards the trained weights, as a share of the distance a step and unit of
            learning rate (L2-SP, Li et al., ICML 2018, decoupled from the gradient).
        blend: Share of the way from the trained weights to the learnt ones that the result goes
            (WiSE-FT, Wortsman et al., CVPR 2022): near the trained ones home is kept, and most of
            what was gained away.
        kept: Share of each class's pixels, the surest, that count as pseudo-labels (class-balanced
            self-training, Zou et al., ECCV 2018).
        mixed: Share of place views into which half of a rehearsed frame's classes are pasted.
        features: Weight of dense feature consistency.
        detection: Weight of score and box consistency.
        place: Weight of self-training on the place. Zero unless asked for: on CamVid's dusk it cost
            more than it gained, see docs/adaptation.md. The place's looks are learnt all the same.
        rehearsal: Weight of the labelled source frames.
        checkpoint_every: Steps between checkpoints.
        threads: CPU threads of torch; part of what makes a resumed run give the same result.
        seed: Of everything random.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    steps: int = Field(default=1200, ge=1)
    place_frames: int = Field(default=1, ge=1)
    rehearsed_frames: int = Field(default=6, ge=1)
    clean_frames: int = Field(default=2, ge=1)
    crop: float = Field(default=0.5, gt=0, le=1)
    lr: float = Field(default=1e-4, gt=0)
    ema: float = Field(default=0.98, ge=0, lt=1)
    anchor: float = Field(default=1.0, ge=0)
    blend: float = Field(default=0.95, gt=0, le=1)
    kept: float = Field(default=0.4, gt=0, le=1)
    mixed: float = Field(default=0.5, ge=0, le=1)
    features: float = Field(default=0.5, ge=0)
    detection: float = Field(default=0.3, ge=0)
    place: float = Field(default=0.0, ge=0)
    rehearsal: float = Field(default=1.0, ge=0)
    checkpoint_every: int = Field(default=50, ge=1)
    threads: int = Field(default=1, ge=1)
    seed: int = 0
