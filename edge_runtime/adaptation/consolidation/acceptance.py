"""Whether a consolidated network may be used: what it still knows, and how it took to the place.

Judged on frames that were kept out of learning: labelled ones of the canary, where nothing may be
lost, and in the looks of the place they must be known better than before; and unlabelled ones of
the place, where nothing may fall apart. Before and after count with the adapter that alignment
finds, where that is better: what adapting does as well is no reason to change weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np

from edge_runtime.adaptation.evidence import class_shares, histogram_distance
from edge_runtime.decode import suppress
from edge_runtime.evaluation import confusion, miou
from edge_runtime.manifest import Spec
from edge_runtime.selftest import boxes_found

Run = Callable[[np.ndarray, np.ndarray | None], Mapping[str, np.ndarray]]
_SURE, _IOU = 0.3, 0.5  # score and overlap from which a box counts as found
_NUMBERS = (
    "canary_miou",
    "canary_boxes",
    "looks_miou",
    "agreement",
    "detections",
    "canary_detections",
)
_SUPPRESSED = 0.6  # overlap above which the lesser box of a class is dropped


class AcceptanceLimits(Spec):
    """What a consolidated network may lose.

    Attributes:
        canary_miou: Mean IoU on the canary, as a fraction.
        canary_boxes: Share of the canary's objects found; one object may always be lost.
        looks_gain: Least rise of the mean IoU on the canary in the looks of the place, with the
            adapter that alignment finds or without, whichever is better: before as after.
        agreement: Share of a place's pixels that are alike in a frame and its mirror image, with
            the adapter or without likewise.
        classes: Jensen-Shannon distance between the class histograms before and after, 0 to 1.
        detections: Factor by which objects a frame of the place may differ from those of the
            canary; more only if they differed as much before.
    """

    canary_miou: float = 0.02
    canary_boxes: float = 0.05
    looks_gain: float = 0.0
    agreement: float = 0.02
    classes: float = 0.35
    detections: float = 3.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What one network does on the frames that were kept out; None where it has no such head.

    Attributes:
        canary_miou: Mean IoU against the canary's masks, 0 to 1.
        canary_boxes: Share of the canary's objects found.
        canary_objects: Number of the canary's objects.
        looks_miou: Mean IoU on the canary in the looks of the place, with or without an adapter.
        agreement: Share of the place's pixels alike in a frame and its mirror image, with or
            without an adapter.
        histogram: float64 [classes], share of the place's pixels by class, with the adapter if
            there is one, as the place is learnt under it.
        detections: Objects found a frame of the place, likewise.
        canary_detections: The same of the canary.
        finite: Whether every output was.
    """

    canary_miou: float | None
    canary_boxes: float | None
    canary_objects: int
    looks_miou: float | None
    agreement: float | None
    histogram: np.ndarray | None
    detections: float | None
    canary_detections: float | None
    finite: bool

    def numbers(self) -> dict[str, float]:
        """The scalars, by name."""
        told = asdict(self)
        return {name: float(told[name]) for name in _NUMBERS if told[name] is not None}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the network is accepted, what speaks against it, and by which numbers."""

    accepted: bool
    reasons: list[str]
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeptOut:
    """Frames that were not learnt from, uint8 [N, H, W, 3] at the network's size.

    Attributes:
        canary: Labelled frames of the training domain.
        masks: uint8 [N, H, W] class indices, 255 where unlabelled, or None.
        boxes: float32 [N, M, 5] of label and xyxy, label -1 where there is none, or None.
        place: Frames of the place.
        classes: Number of segmentation classes.
        painted: The canary in the looks of the place, or None.
    """

    canary: np.ndarray
    masks: np.ndarray | None
    boxes: np.ndarray | None
    place: np.ndarray
    classes: int
    painted: np.ndarray | None = None


def measure(run: Run, frames: KeptOut, adapter: np.ndarray | None = None) -> Measured:
    """Run a network over the frames that were kept out.

    Args:
        run: Maps an image uint8 [1, H, W, 3] and an adapter float32 [A], or None for the identity,
            to the network's outputs.
        frames: What to run it on.
        adapter: The one that alignment finds for this network at the place.
    """
    matrix = np.zeros((frames.classes, frames.classes), np.int64)
    hits, objects, finite, usual = 0, 0, True, []
    for index, image in enumerate(frames.canary):
        outputs = run(image[None], None)
        finite &= _finite(outputs)
        if "mask" in outputs and frames.masks is not None:
            matrix += _confusion(outputs["mask"], frames.masks[index], frames.classes)
        if "boxes" in outputs and frames.boxes is not None:
            one, all_ = _objects_found(frames.boxes[index], outputs)
            hits, objects = hits + one, objects + all_
        if "scores" in outputs:
            usual.append(_objects(outputs))
    shares, found = [], []
    for image in frames.place:
        outputs = run(image[None], adapter)
        finite &= _finite(outputs)
        if "mask" in outputs:
            shares.append(class_shares(outputs["mask"], frames.classes))
        if "scores" in outputs:
            found.append(_objects(outputs))
    return Measured(
        canary_miou=miou(matrix) if matrix.any() else None,
        canary_boxes=hits / objects if objects else None,
        canary_objects=objects,
        looks_miou=_best_in_looks(run, frames, adapter),
        agreement=_agreement(run, frames, adapter) if shares else None,
        histogram=np.mean(shares, axis=0) if shares else None,
        detections=float(np.mean(found)) if found else None,
        canary_detections=float(np.mean(usual)) if usual else None,
        finite=bool(finite),
    )


def known_in_looks(run: Run, frames: KeptOut, adapter: np.ndarray | None) -> float | None:
    """Mean IoU on the painted canary under an adapter, or the identity; None without labels."""
    if frames.painted is None or frames.masks is None:
        return None
    matrix = np.zeros((frames.classes, frames.classes), np.int64)
    for image, mask in zip(frames.painted, frames.masks, strict=True):
        matrix += _confusion(run(image[None], adapter)["mask"], mask, frames.classes)
    return miou(matrix) if matrix.any() else None


def _best_in_looks(run: Run, frames: KeptOut, adapter: np.ndarray | None) -> float | None:
    """Mean IoU on the painted canary, under the identity or the adapter, whichever is better."""
    if frames.painted is None or frames.masks is None:
        return None
    return max(known_in_looks(run, frames, given) or 0.0 for given in _known(adapter))


def _agreement(run: Run, frames: KeptOut, adapter: np.ndarray | None) -> float:
    """Share of pixels alike in frames of the place and their mirror images, likewise."""
    found = []
    for given in _known(adapter):
        alike = []
        for image in frames.place:
            mask = run(image[None], given)["mask"].copy()
            mirrored = run(np.ascontiguousarray(image[None, :, ::-1]), given)["mask"]
            alike.append(float((mask == mirrored[:, ::-1]).mean()))
        found.append(float(np.mean(alike)))
    return max(found)


def _known(adapter: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
    """The identity, as None, and the adapter if there is one."""
    return (None,) if adapter is None else (None, adapter)


def judge(before: Measured, after: Measured, limits: AcceptanceLimits) -> Verdict:
    """Compare a network with the one it came from; it is accepted if nothing speaks against it."""
    against = [] if after.finite else ["an output is not finite"]
    for name, what in (
        ("canary_miou", "the canary's mean IoU"),
        ("canary_boxes", "the share of the canary's objects found"),
        ("agreement", "agreement with mirror images at the place"),
    ):
        old, new, most = getattr(before, name), getattr(after, name), getattr(limits, name)
        if name == "canary_boxes" and before.canary_objects:
            most = max(most, 1.001 / before.canary_objects)
        if old is not None and (new is None or not new >= old - most):
            fell = "is undefined" if new is None else f"fell from {old:.3f} to {new:.3f}"
            against.append(f"{what} {fell}, may fall by {most:.3g}")
    old, new = before.looks_miou, after.looks_miou
    if old is not None and new is not None and not new > old + limits.looks_gain:
        against.append(
            f"in the looks of the place the canary's mean IoU would be {new:.3f} and is {old:.3f} "
            "with the adapter that alignment finds, if that is better: adapting does as much"
        )
    if before.histogram is not None and after.histogram is not None:
        far = histogram_distance(before.histogram, after.histogram)
        if not far <= limits.classes:
            against.append(f"class shares moved by {far:.2f}, may move by {limits.classes:g}")
    if before.canary_detections is not None and after.detections is not None:
        usual, found = before.canary_detections, before.detections or 0.0
        if not _factor(after.detections, usual) <= max(limits.detections, _factor(found, usual)):
            against.append(
                f"{after.detections:.1f} objects a frame were {found:.1f}, in the canary "
                f"{usual:.1f}; may differ from that by a factor of {limits.detections:g}"
            )
    return Verdict(not against, against, {"before": before.numbers(), "after": after.numbers()})


def _confusion(mask: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Of a mask [h, w] against a label [H, W]."""
    label = cv2.resize(label, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return confusion(mask, label, classes)


def _objects(outputs: Mapping[str, np.ndarray]) -> int:
    sure = outputs["scores"] >= _SURE
    boxes, scores, labels = (outputs[name][sure] for name in ("boxes", "scores", "labels"))
    return len(suppress(boxes, scores, labels, _SUPPRESSED))


def _factor(one: float, other: float) -> float:
    """How many times more or fewer; one is added to each, as a few objects are no evidence."""
    ratio = (one + 1) / (other + 1)
    return max(ratio, 1 / ratio)


def _finite(outputs: Mapping[str, np.ndarray]) -> bool:
    return all(bool(np.isfinite(v).all()) for v in outputs.values() if v.dtype.kind == "f")


def _objects_found(labelled: np.ndarray, outputs: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """How many labelled boxes [M, 5] were found, of how many."""
    rows = labelled[labelled[:, 0] >= 0]
    sure = outputs["scores"] >= _SURE
    truth = {"boxes": rows[:, 1:], "labels": rows[:, 0].astype(int), "scores": np.ones(len(rows))}
    found = {name: outputs[name][sure] for name in ("boxes", "labels", "scores")}
    return boxes_found(truth, found, _IOU, 1.0)
