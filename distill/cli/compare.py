"""`fieldsight-distill compare`: is one run better than another, or is it chance?"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from distill.cli.app import Json, app, finish
from edge_runtime.errors import InputError
from edge_runtime.terminal import console, table_of

if TYPE_CHECKING:
    from distill.evaluation.comparing import Group


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_A RUN_B ...",
            help="Run folders or per_image.npz files; several seeds as A0,A1,A2 or 'runs/a-*'.",
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="miou, accuracy, map_50, map, ap_30; repeatable. Default: what is there."
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Draws, and exchanges.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    json_path: Json = None,
) -> None:
    """Paired tests between runs, over images and over seeds.

    Example: fieldsight-distill compare 'runs/supervised-*' 'runs/semi-*'
    """
    from distill.evaluation.comparing import compare_groups, open_group

    if len(runs) < 2:
        raise InputError(f"{len(runs)} run to compare; give two at least")
    groups = [open_group(text, _files(text)) for text in runs]
    figures = compare_groups(groups, metric, resamples, seed)
    for name, pairs in figures["metrics"].items():
        _show(name, groups, pairs)
    finish(json_path, figures, [], "")


def _files(text: str) -> list[Path]:
    found: list[Path] = []
    for part in text.split(","):
        matches = sorted(glob.glob(part)) if glob.has_magic(part) else [part]
        if not matches:
            raise InputError(f"{part!r} matches nothing; give run folders or files of results")
        found += map(Path, matches)
    return found


def _show(metric: str, groups: list[Group], pairs: list[dict[str, Any]]) -> None:
    values = table_of(metric, "run", "by seed", "mean")
    by_seed = {p["a"]: p["a_by_seed"] for p in pairs} | {p["b"]: p["b_by_seed"] for p in pairs}
    for group in groups:
        row = by_seed[group.name]
        values.add_row(group.name, " ".join(f"{v:.4f}" for v in row), f"{sum(row) / len(row):.4f}")
    console.print(values)
    for pair in pairs:
        console.print(_tests(pair, several=len(pairs) > 1))


def _tests(pair: dict[str, Any], several: bool) -> Table:
    """The tests of one pair, a row each for images, seeds and both."""
    title = f"{pair['b']} over {pair['a']}: {pair['gain']:+.4f}, paired tests, two-sided"
    if several:
        title += f"; exchange of images by Holm p = {pair['p_holm']:.4f}"
    table = table_of(title, "over", "95% interval", "bootstrap p", "exchange p", "t p", "d")
    for level in ("images", "seeds", "both"):
        t = pair[level]
        if t["low"] is None and t["p_permutation"] is None:
            continue
        table.add_row(
            level,
            "" if t["low"] is None else f"{t['low']:+.4f} to {t['high']:+.4f}",
            _number(t["p_bootstrap"]),
            _number(t["p_permutation"]),
            _number(t["p_t"]),
            "" if t["effect"] is None else f"{t['effect']:.2f}",
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
