"""What speaks for and against an adapter without a single label.

`Evidence` is of one frame, `Outcome` of the few frames that one adapter was seen on. All of it but
`agreement` is read off a result that exists anyway; agreement costs one forward pass a frame, of
the mirrored image, and the caller says on which frames that is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.adaptation.divergence import divergence
from edge_runtime.adaptation.home import Home
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.source import pooled
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result

_STRIDE = 4  # of the pixels that are counted: shares need no more
_BLACK = 4  # grey level up to which a pixel shows nothing
_UNSEEN = 255  # mask value where the network's undistorted view does not reach


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one result says; None where the bundle does not publish it or it was not measured.

    Attributes:
        statistics: float32 [A], or None.
        histogram: float64 [classes], share of the pixels by predicted class, or None.
        confidence: Mean confidence of the mask, 0 to 1.
        detections: Number of objects found.
        agreement: Share of pixels with the same class in the frame and in its mirror image.
        finite: Whether all of it is.
    """

    statistics: np.ndarray | None
    histogram: np.ndarray | None
    confidence: float | None
    detections: int | None
    agreement: float | None
    finite: bool

    @classmethod
    def of(
        cls,
        result: Result,
        classes: int,
        mirrored: Result | None = None,
        frame: Frame | None = None,
    ) -> Evidence:
        """Read the evidence off a result.

        Args:
            result: Of perception, on one frame.
            classes: Number of segmentation classes.
            mirrored: What the same adapter gave for the frame's mirror image, if that was run.
            frame: The frame itself, where it is known; see `mirror_agreement`.
        """
        mask = None if result.segmentation is None else result.segmentation.mask
        map_ = None if result.segmentation is None else result.segmentation.confidence
        confidence = None if map_ is None else float(map_[::_STRIDE, ::_STRIDE].mean())
        found = result.detections
        values = [
            None if result.statistics is None else result.statistics.sum(),
            confidence,
            None if found is None else found.boxes.sum() + found.scores.sum(),
        ]
        return cls(
            statistics=result.statistics,
            histogram=None if mask is None else class_shares(mask, classes),
            confidence=confidence,
            detections=None if found is None else len(found),
            agreement=None if mirrored is None else mirror_agreement(result, mirrored, frame),
            finite=all(value is None or bool(np.isfinite(value)) for value in values),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one adapter led to on a few frames; None where nothing was measured.

    Attributes:
        adapter: float32 [A].
        frames: How many frames it was seen on.
        distance: Mean divergence per channel of the pooled statistics from the reference, over the
            points whose statistics the adapter changes: all but the first.
        histogram: float64 [classes], share of the pixels by predicted class.
        class_distance: Jensen-Shannon distance of that from the training domain's, 0 to 1.
        confidence: Mean confidence of the masks.
        detections: Objects found a frame.
        agreement: Mean agreement of the frames that it was measured on.
        finite: Whether every value of the adapter and of the outputs was.
        detections_at_home: Objects a frame in the training domain.
    """

    adapter: np.ndarray
    frames: int
    distance: float | None
    histogram: np.ndarray | None
    class_distance: float | None
    confidence: float | None
    detections: float | None
    agreement: float | None
    finite: bool
    detections_at_home: float | None = None

    @classmethod
    def over(
        cls,
        adapter: np.ndarray,
        evidence: Sequence[Evidence],
        reference: Reference,
        home: Home | None = None,
    ) -> Outcome:
        """Sum up what was seen under one adapter.

        Args:
            adapter: float32 [A], in use on all of these frames.
            evidence: One entry a frame, at least one.
            reference: Statistics of the training domain.
            home: What its frames show, if known.
        """
        if not evidence:
            raise InputError("an outcome needs at least one frame")
        statistics = [e.statistics for e in evidence if e.statistics is not None]
        histograms = [e.histogram for e in evidence if e.histogram is not None]
        histogram = np.mean(histograms, axis=0) if histograms else None
        far = None
        if histogram is not None and home is not None and home.histogram is not None:
            far = histogram_distance(histogram, home.histogram)
        return cls(
            adapter=np.array(adapter, np.float32),
            frames=len(evidence),
            distance=distance_from(reference, np.stack(statistics)) if statistics else None,
            histogram=histogram,
            class_distance=far,
            confidence=_mean([e.confidence for e in evidence]),
            detections=_mean([e.detections for e in evidence]),
            agreement=_mean([e.agreement for e in evidence]),
            finite=bool(np.isfinite(adapter).all()) and all(e.finite for e in evidence),
            detections_at_home=None if home is None else home.objects,
        )


def distance_from(reference: Reference, statistics: np.ndarray) -> float:
    """Mean divergence from the reference of the statistics [N, A] of N frames, pooled.

    The first point is left out, since no adapter changes what enters it; where there is no other,
    it is all there is.
    """
    mean, var = pooled(*reference.split(statistics))
    start = reference.first.stop if len(reference.points) > 1 else 0
    parts = [part for part in reference.slices.values() if part.start >= start]
    each = [divergence(mean[p], var[p], reference.mean[p], reference.var[p]) for p in parts]
    return float(np.concatenate(each).mean())


def class_shares(mask: np.ndarray, classes: int) -> np.ndarray:
    """Share of the pixels by class, float64 [classes]; all zero where no pixel has one."""
    seen = mask[::_STRIDE, ::_STRIDE].ravel()
    counts = np.bincount(seen, minlength=classes)[:classes].astype(np.float64)
    return counts / max(counts.sum(), 1.0)


def histogram_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Jensen-Shannon distance of two class histograms, 0 to 1 (Endres and Schindelin, 2003)."""
    p, q = one / max(one.sum(), 1e-12), other / max(other.sum(), 1e-12)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(x > 0, x * np.log2(x / middle), 0).sum() for x in (p, q)]
    return float(np.sqrt(np.clip(sum(parts) / 2, 0, 1)))


def mirror_agreement(result: Result, mirrored: Result, frame: Frame | None = None) -> float | None:
    """Share of pixels with the same class in a frame and in its mirror image; None without masks.

    Pixels that are black in the frame, as behind something before the lens, are left out: what is
    guessed there agrees with itself or not, and neither says anything.

    A network that knows what it sees says the same of both: invariance foretells accuracy without
    labels (Deng et al., "On the strong correlation between model invariance and generalization",
    NeurIPS 2022). Where a lens is undistorted that is not quite a mirror image, alike for every
    adapter.
    """
    if result.segmentation is None or mirrored.segmentation is None:
        return None
    one = result.segmentation.mask[::_STRIDE, ::_STRIDE]
    other = mirrored.segmentation.mask[:, ::-1][::_STRIDE, ::_STRIDE]
    seen = (one != _UNSEEN) & (other != _UNSEEN)
    if frame is not None and frame.image.shape[:2] == result.segmentation.mask.shape:
        seen &= frame.image[::_STRIDE, ::_STRIDE].max(axis=2) > _BLACK
    return float((one == other)[seen].mean()) if seen.any() else None


def mirror_pass(perceive: Callable[[Frame], Result], frame: Frame) -> Result:
    """Perceive a frame's mirror image: one forward pass, under the adapter now in use."""
    image = np.ascontiguousarray(frame.image[:, ::-1])
    return perceive(Frame(image, frame.stamp_ns, frame.frame_id))


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None
