"""Which layers quantisation hurts, and the fewest that must stay in floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calibration.judging import Figures, Judge, drop
from calibration.network import Layer
from calibration.quantization import Quantise


@dataclass(frozen=True, slots=True)
class Damage:
    """What it costs to quantise one layer alone.

    Attributes:
        layer: The layer.
        drop: Points lost by the figure that suffers most; negative if all rise.
        disagreement: Points of mask pixels or boxes that come out otherwise.
    """

    layer: Layer
    drop: float
    disagreement: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        row = asdict(self.layer)
        return {**row, "drop": self.drop, "disagreement": self.disagreement}


@dataclass(frozen=True, slots=True)
class Trial:
    """One step of the search: how many layers stayed in float, and what that cost."""

    in_float: int
    figures: Figures
    drop: float


@dataclass(frozen=True, slots=True)
class Search:
    """The outcome of `fewest_in_float`.

    Attributes:
        in_float: Nodes that stay in float; None if not even all of them were enough.
        trials: What was tried, in order.
    """

    in_float: frozenset[str] | None
    trials: list[Trial]


def measure(
    quantise: Quantise,
    layers: Sequence[Layer],
    judge: Judge,
    agreement: Judge,
    before: Figures,
    tick: Callable[[], None] = lambda: None,
) -> list[Damage]:
    """Quantise each layer alone, all others in float, and judge; most sensitive first.

    Layers that cost equally much by `judge` are ordered by how far outputs change.
    """
    nodes = {layer.node for layer in layers}
    rows = []
    for layer in layers:
        model = quantise(nodes - {layer.node})
        agreed = agreement(model)
        lost = drop(before, judge(model)) if judge is not agreement else drop(before, agreed)
        rows.append(Damage(layer, lost, 100 * (1 - min(agreed.values(), default=1.0))))
        tick()
    return sorted(rows, key=lambda row: (-max(row.drop, 0.0), -row.disagreement))


def fewest_in_float(
    quantise: Quantise,
    ranking: Sequence[Damage],
    judge: Judge,
    before: Figures,
    budget: float,
    tick: Callable[[Trial], None] = lambda _: None,
) -> Search:
    """Keep layers in float, most sensitive first, until the loss is within the budget.

    The number is doubled until it suffices and then halved back by bisection, so that of n layers
    about 2 log2 n networks are judged.

    Args:
        quantise: Makes the network with these nodes in float.
        ranking: From `measure`.
        judge: Scores a network.
        before: Figures of the FP32 network.
        budget: Points that may be lost.
        tick: Called after each trial.
    """
    order = [row.layer.node for row in ranking]
    trials: list[Trial] = []

    def suffices(count: int) -> bool:
        figures = judge(quantise(order[:count]))
        trials.append(Trial(count, figures, drop(before, figures)))
        tick(trials[-1])
        return trials[-1].drop <= budget

    low, count = 0, 1
    most = len(order) - 1  # at least one layer must be quantised
    while not suffices(min(count, most)):
        if count >= most:
            return Search(None, trials)
        low, count = count, 2 * count
    high = min(count, most)
    while high - low > 1:
        middle = (low + high) // 2
        if suffices(middle):
            high = middle
        else:
            low = middle
    return Search(frozenset(order[:high]), trials)
