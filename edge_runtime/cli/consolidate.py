"""`fieldsight-run consolidate`: learn a place into the weights while the robot rests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_runtime import terminal
from edge_runtime.bundle import open_bundle
from edge_runtime.cli.app import app
from edge_runtime.errors import InputError
from edge_runtime.terminal import BundlePath, JsonFile

if TYPE_CHECKING:
    from edge_runtime.adaptation.consolidation.acceptance import Verdict


@app.command(
    epilog="Example: `fieldsight-run consolidate my.bundle --memory frames/ --out dusk.bundle`"
)
def consolidate(
    bundle: BundlePath,
    memory: Annotated[
        str, typer.Option(help="Frame memory, image folder, video or dataset.yaml:SPLIT")
    ],
    out: Annotated[
        Path | None, typer.Option(help="New bundle; NAME-consolidated.bundle beside the old one")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Stop learning after so long")
    ] = None,
    watt_hours: Annotated[
        float | None, typer.Option(min=0.001, help="Stop after so much energy; on a Jetson only")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimiser")] = None,
    lr: Annotated[
        float | None, typer.Option(min=1e-7, help="Peak learning rate; higher for a hard change")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; the same to go on with a run")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of everything random")] = 0,
    restart: Annotated[bool, typer.Option(help="Forget an unfinished run")] = False,
    json_file: JsonFile = None,
) -> None:
    """Tune the weights on remembered frames, without labels, and write a new bundle.

    The new network is judged on labelled canary frames and on frames of the place that it did not
    learn from. If it lost anything it is not written (exit code 3). The old bundle stays as it is:
    going back is using it again. A run that was killed goes on where it was.
    """
    try:
        from edge_runtime.adaptation.consolidation.run import NotAccepted
        from edge_runtime.adaptation.consolidation.run import consolidate as run
    except ImportError as error:
        raise InputError(
            f"consolidation needs {error.name}: pip install 'fieldsight[adapt]'"
        ) from None
    from edge_runtime.adaptation.consolidation.settings import ConsolidationSettings

    opened = open_bundle(bundle)
    target = out or bundle.with_name(f"{bundle.stem}-consolidated.bundle")
    given: dict[str, Any] = {"threads": threads, "seed": seed, "steps": steps, "lr": lr}
    settings = ConsolidationSettings(**{k: v for k, v in given.items() if v is not None})
    report: dict[str, Any] = {"accepted": False, "bundle": None, "reasons": []}
    try:
        with terminal.progress_bar() as bar:
            task = bar.add_task("consolidate", total=settings.steps)
            result = run(
                opened,
                memory,
                target,
                settings,
                minutes=minutes,
                watt_hours=watt_hours,
                restart=restart,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except NotAccepted as refused:
        report |= {"reasons": refused.verdict.reasons, **refused.verdict.numbers}
        _show(refused.verdict)
        terminal.write_json(json_file, report)
        raise
    report |= {
        "accepted": True,
        "bundle": str(result.bundle.path),
        "steps": result.steps,
        "stopped": result.stopped,
        "spent": asdict(result.spent),
        "losses": result.losses,
        **result.verdict.numbers,
    }
    _show(result.verdict)
    if result.stopped:
        terminal.console.print(f"stopped after {result.steps} steps: {result.stopped}")
    terminal.wrote(result.bundle.path)
    terminal.write_json(json_file, report)
    left = [name for name in opened.manifest.files if name not in result.bundle.manifest.files]
    if left:
        names = ", ".join(left)
        terminal.console.print(f"left out, made for the old weights: {names}", soft_wrap=True)
    terminal.next_command("fieldsight-run", "verify", result.bundle.path)


def _show(verdict: Verdict) -> None:
    """What was measured before and after, on frames kept out of learning."""
    table = terminal.table_of("frames kept out", "", "before", "after")
    before, after = verdict.numbers["before"], verdict.numbers["after"]
    for name, value in before.items():
        new = f"{after[name]:.4f}" if name in after else "none"
        table.add_row(name.replace("_", " "), f"{value:.4f}", new)
    terminal.console.print(table)
