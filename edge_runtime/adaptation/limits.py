"""What an adapter may not do: the checks of the guard, one function each, and their limits.

A check compares what was seen under one adapter with what was seen under another, and says in a
sentence what is wrong, or nothing. What the bundle does not publish is not checked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import Field

from edge_runtime.adaptation.evidence import Outcome
from edge_runtime.adaptation.reference import Reference
from edge_runtime.manifest import Spec


class Limits(Spec):
    """How much better an adapter must look to be used, and how much worse it may not.

    The defaults were read off two students, eight windows each of fourteen shifts; see
    docs/adaptation.md.

    Attributes:
        distance_gain: Least share by which the statistics must come closer to the reference.
        confidence_gain: Least rise of the mean confidence that shows that this helped.
        agreement_gain: Least rise of the agreement of mirror images that does.
        class_gain: Least fall of `Outcome.class_distance` that does; classes that return show that
            the network had lost its way, and nothing that it was sure of counts against it then.
        distance_loss: Most share by which the statistics may move away, beside `distance_slack`:
            near home they stray by more than any share of next to nothing.
        agreement_loss: Most that the agreement of mirror images may fall.
        confidence_loss: Most that the mean confidence may fall.
        confidence_excess: Most that it may rise: collapse makes a network sure of itself.
        class_loss: Most that `Outcome.class_distance` may rise.
        dominance: A class on more than this share of all pixels is a collapse, unless it was there.
        detections_ratio: Most by which the number of objects found may grow or shrink, as a
            factor, beside `detections_slack`; it may always grow to that of the training domain.
        detections_slack: Objects a frame that it may differ by in any case.
        scale_ratio: Most that a channel is scaled up or down.
        radius: Most that an adapter may move a channel; see `movement`.
        canary_kept: Least share of what the canary knew that must be left; see `CanaryReport.kept`.
    """

    distance_gain: float = Field(default=0.1, ge=0, le=1)
    confidence_gain: float = Field(default=0.01, ge=0, le=1)
    agreement_gain: float = Field(default=0.01, ge=0, le=1)
    class_gain: float = Field(default=0.08, ge=0, le=1)
    distance_loss: float = Field(default=0.1, ge=0)
    distance_slack: float = Field(default=0.02, ge=0)
    agreement_loss: float = Field(default=0.05, ge=0, le=1)
    confidence_loss: float = Field(default=0.05, ge=0, le=1)
    confidence_excess: float = Field(default=0.25, ge=0, le=1)
    class_loss: float = Field(default=0.1, ge=0, le=1)
    dominance: float = Field(default=0.9, gt=0, le=1)
    detections_ratio: float = Field(default=3.0, ge=1)
    detections_slack: float = Field(default=5.0, ge=0)
    scale_ratio: float = Field(default=4.0, ge=1)
    radius: float = Field(default=2.0, gt=0)
    canary_kept: float = Field(default=0.25, ge=0, le=1)

    def loosened(self, factor: float) -> Limits:
        """The same with every loss allowed `factor` times: for windows of different frames."""
        losses = ("agreement_loss", "confidence_loss", "confidence_excess", "class_loss")
        slack = ("distance_loss", "distance_slack", "detections_slack")
        wider = {name: min(getattr(self, name) * factor, 1.0) for name in losses}
        wider |= {name: getattr(self, name) * factor for name in slack}
        return self.model_copy(update=wider)


Check = Callable[[Outcome, Outcome, Limits], str | None]


def not_finite(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """Outputs or statistics with NaN or infinities."""
    return None if subject.finite else "values that are not finite"


def farther(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """Statistics that move away from those of the training domain."""
    if subject.distance is None or base.distance is None:
        return None
    if subject.distance <= base.distance * (1 + limits.distance_loss) + limits.distance_slack:
        return None
    return f"statistics move away from the reference: {base.distance:.3f} to {subject.distance:.3f}"


def disagreeing(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """A frame and its mirror image that agree less, and not because less is of one class."""
    if subject.agreement is None or base.agreement is None:
        return None
    if subject.agreement >= base.agreement - limits.agreement_loss:
        return None
    if class_gained(subject, base) >= limits.class_gain:
        return None
    if beyond_chance(subject) > beyond_chance(base):
        return None
    return f"mirror images agree less: {base.agreement:.1%} to {subject.agreement:.1%}"


def unsure(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """A mask that loses confidence."""
    if subject.confidence is None or base.confidence is None:
        return None
    if subject.confidence >= base.confidence - limits.confidence_loss:
        return None
    if class_gained(subject, base) >= limits.class_gain:
        return None
    return f"confidence falls: {base.confidence:.3f} to {subject.confidence:.3f}"


def oversure(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """A mask that gains confidence and no agreement: entropy minimised, nothing learnt."""
    if subject.confidence is None or base.confidence is None:
        return None
    if subject.confidence <= base.confidence + limits.confidence_excess:
        return None
    if agreement_gained(subject, base) >= limits.agreement_gain:
        return None
    if class_gained(subject, base) >= limits.class_gain:
        return None
    return f"confidence rises without cause: {base.confidence:.3f} to {subject.confidence:.3f}"


def dominated(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """One class that takes the picture over."""
    if subject.histogram is None or base.histogram is None or not len(subject.histogram):
        return None
    share, before = float(subject.histogram.max()), float(base.histogram.max())
    if share <= max(limits.dominance, before):
        return None
    name = int(subject.histogram.argmax())
    return f"class {name} takes {share:.1%} of the picture, {before:.1%} at most before"


def unlike_home(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """Classes whose shares move away from those of the training domain."""
    if subject.class_distance is None or base.class_distance is None:
        return None
    if subject.class_distance <= base.class_distance + limits.class_loss:
        return None
    return (
        "classes move away from those of the training domain: "
        f"{base.class_distance:.3f} to {subject.class_distance:.3f}"
    )


def miscounted(subject: Outcome, base: Outcome, limits: Limits) -> str | None:
    """Objects that vanish, or multiply beyond what the training domain has.

    A network that had lost its way may find more.
    """
    if subject.detections is None or base.detections is None:
        return None
    if class_gained(subject, base) >= limits.class_gain and subject.detections >= base.detections:
        return None
    most = max(base.detections * limits.detections_ratio, subject.detections_at_home or 0.0)
    most += limits.detections_slack
    least = base.detections / limits.detections_ratio - limits.detections_slack
    if least <= subject.detections <= most:
        return None
    return f"objects a frame: {base.detections:.1f} to {subject.detections:.1f}"


def agreement_gained(subject: Outcome, base: Outcome) -> float:
    """Rise of the agreement of mirror images; 0 where it was not measured."""
    if subject.agreement is None or base.agreement is None:
        return 0.0
    return subject.agreement - base.agreement


def beyond_chance(outcome: Outcome) -> float:
    """Agreement of mirror images beyond chance, 1 at most: Cohen's kappa (1960).

    Where nearly all is of one class, mirror images agree whatever the network knows.
    """
    if outcome.agreement is None or outcome.histogram is None:
        return 0.0
    chance = float((outcome.histogram**2).sum())
    return (outcome.agreement - chance) / max(1 - chance, 1e-6)


def confidence_gained(subject: Outcome, base: Outcome) -> float:
    """Rise of the mean confidence; 0 where it was not measured."""
    if subject.confidence is None or base.confidence is None:
        return 0.0
    return subject.confidence - base.confidence


def class_gained(subject: Outcome, base: Outcome) -> float:
    """How much the classes came closer to the training domain's; 0 where not measured."""
    if subject.class_distance is None or base.class_distance is None:
        return 0.0
    return base.class_distance - subject.class_distance


def distance_gained(subject: Outcome, base: Outcome) -> float:
    """Share by which the statistics came closer to the reference; 0 where not measured."""
    if subject.distance is None or not base.distance:
        return 0.0
    return 1 - subject.distance / base.distance


def merits(subject: Outcome, base: Outcome, limits: Limits) -> list[str]:
    """What speaks for an adapter, in sentences; nothing if it is not shown to be better.

    Closer statistics alone show nothing (they come closer with every alignment, whether it helps or
    not), unless there is no mask to tell by. Confidence shows something only beside them, since
    there are ways to raise it by itself.
    """
    closer = distance_gained(subject, base)
    found = []
    if closer >= limits.distance_gain and subject.histogram is None:
        found.append(f"statistics come {closer:.0%} closer to the reference")
    sure = confidence_gained(subject, base)
    if closer >= limits.distance_gain and sure >= limits.confidence_gain:
        found.append(f"statistics come {closer:.0%} closer, and confidence rises by {sure:.3f}")
    if (gain := agreement_gained(subject, base)) >= limits.agreement_gain:
        found.append(f"mirror images agree on {gain * 100:.1f} points more")
    if (gain := class_gained(subject, base)) >= limits.class_gain:
        found.append(f"classes come {gain:.3f} closer to the training domain's")
    return found


CHECKS: tuple[Check, ...] = (
    not_finite,
    farther,
    disagreeing,
    unsure,
    oversure,
    dominated,
    unlike_home,
    miscounted,
)


def outside_ball(adapter: np.ndarray, reference: Reference, limits: Limits) -> str | None:
    """Whether an adapter leaves the ball around the identity, and how; costs no forward pass."""
    if adapter.shape != (2 * len(reference.mean),):
        return f"adapter of shape {adapter.shape}, expected ({2 * len(reference.mean)},)"
    if not np.isfinite(adapter).all():
        return "adapter holds values that are not finite"
    scale, _ = reference.split(adapter)
    low, high = float(scale.min()), float(scale.max())
    if low < 1 / limits.scale_ratio - 1e-6 or high > limits.scale_ratio + 1e-6:
        allowed = f"{1 / limits.scale_ratio:.2f} to {limits.scale_ratio:.2f}"
        return f"a channel is scaled by {low if low < 1 / high else high:.2f}, allowed {allowed}"
    moved = movement(adapter, reference)
    if moved > limits.radius:
        return f"channels move by {moved:.2f} standard deviations, allowed {limits.radius:.2f}"
    return None


def movement(adapter: np.ndarray, reference: Reference) -> float:
    """How far an adapter moves the channels of the training domain.

    Returns:
        Root mean square over channels of the shift of the mean and the change of the standard
        deviation, each in standard deviations of that channel in the training domain.
    """
    scale, shift = reference.split(np.asarray(adapter, np.float64))
    mean = ((scale - 1) * reference.mean + shift) / reference.spread
    return float(np.sqrt(np.mean(mean**2 + (scale - 1) ** 2)))
