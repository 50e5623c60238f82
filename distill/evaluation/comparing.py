"""Groups of runs, a seed each, compared pair by pair in every metric they share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from distill.evaluation.per_image import METRICS, PerImage, read_per_image
from distill.evaluation.significance import Comparison, compare, holm
from edge_runtime.errors import InputError

_USUAL = ("miou", "accuracy", "map_50")


@dataclass(frozen=True)
class Group:
    """One arm: a name, and the results of its seeds in order."""

    name: str
    seeds: list[PerImage]
    paths: list[Path]


def open_group(name: str, paths: list[Path]) -> Group:
    """Reads the results of an arm's seeds.

    Raises:
        InputError: one cannot be read.
    """
    return Group(name, [read_per_image(path) for path in paths], paths)


def compare_groups(
    groups: list[Group], metrics: list[str] | None, resamples: int, seed: int
) -> dict[str, Any]:
    """All pairs of groups in all metrics, as plain values.

    Returns:
        ``metrics``: per metric a list of pairs: names ``a`` and ``b``, ``a_by_seed``,
        ``b_by_seed``, ``gain``, ``images``, ``seeds``, ``both`` (see `significance.Evidence`) and
        ``p_holm``, the permutation p over images corrected for the number of pairs.

    Raises:
        InputError: different images, classes or numbers of seeds, or a metric that is not there.
    """
    names = [g.name for g in groups]
    if len(set(names)) < len(names):
        raise InputError(f"the same run is given twice: {', '.join(names)}")
    chosen = metrics or _shared(groups)
    figures: dict[str, Any] = {}
    for metric in chosen:
        pairs = []
        for a, b in combinations(groups, 2):
            _check_pair(metric, a, b)
            found = compare(
                [s.scores(metric) for s in a.seeds],
                [s.scores(metric) for s in b.seeds],
                resamples,
                seed,
            )
            pairs.append({"a": a.name, "b": b.name, **_plain(found)})
        for pair, p in zip(pairs, holm([p["images"]["p_permutation"] for p in pairs]), strict=True):
            pair["p_holm"] = p
        figures[metric] = pairs
    return {"metrics": figures, "resamples": resamples}


def _shared(groups: list[Group]) -> list[str]:
    held = [set(s.metrics()) for g in groups for s in g.seeds]
    shared = [m for m in _USUAL if all(m in h for h in held)]
    if not shared:
        raise InputError(
            "the runs share no task: "
            + "; ".join(f"{g.name} has {', '.join(g.seeds[0].images)}" for g in groups)
        )
    return shared


def _check_pair(metric: str, a: Group, b: Group) -> None:
    """Refuses what would not be a paired comparison."""
    if len(a.seeds) != len(b.seeds):
        raise InputError(
            f"{a.name} has {len(a.seeds)} seeds and {b.name} {len(b.seeds)}; a paired comparison "
            "needs as many, in the same order"
        )
    if metric not in METRICS:
        raise InputError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    task = METRICS[metric][0]
    first, where = a.seeds[0], a.paths[0]
    for other, path in zip([*a.seeds, *b.seeds], [*a.paths, *b.paths], strict=True):
        for results, file in ((first, where), (other, path)):
            if task not in results.images:
                raise InputError(f"{file} was not judged on {task}, which {metric} needs")
        same = (
            first.images[task] == other.images[task]
            and first.classes[task] == other.classes[task]
            and first.ignore == other.ignore
        )
        if not same or first.data.get("digest") != other.data.get("digest"):
            raise InputError(
                f"{where} and {path} were not judged on the same images and classes "
                f"({_about(first, task)} and {_about(other, task)}); evaluate both on one split"
            )


def _about(results: PerImage, task: str) -> str:
    digest = results.data.get("digest", "")[:8]
    name = f"{results.data.get('name')}:{results.data.get('split')}"
    return f"{len(results.images[task])} images of {name}, digest {digest}"


def _plain(found: Comparison) -> dict[str, Any]:
    values = asdict(found)
    return {
        "a_by_seed": values.pop("a"),
        "b_by_seed": values.pop("b"),
        **values,
    }
