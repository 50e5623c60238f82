"""`fieldsight-run build`: make and test the TensorRT plan of a bundle on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_runtime import terminal
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.cli.app import Precision, app
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.terminal import BundlePath, JsonFile

if TYPE_CHECKING:
    from edge_runtime.engines.building import Progress
    from edge_runtime.engines.preparing import Prepared

_EXAMPLES = (
    "Examples: `fieldsight-run build my.bundle --precision fp16`, "
    "`fieldsight-run build my.bundle --check --capability 8.6`"
)


@app.command(epilog=_EXAMPLES)
def build(
    bundle: BundlePath,
    precision: Precision = "auto",
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", help="Most scratch memory of a layer, in MiB")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 to 5: higher builds longer, may run faster")
    ] = None,
    dla: Annotated[
        int | None, typer.Option(metavar="CORE", help="Use this deep learning accelerator")
    ] = None,
    cuda_graph: Annotated[
        bool | None, typer.Option("--cuda-graph/--no-cuda-graph", help="Replay a recorded graph")
    ] = None,
    force: Annotated[bool, typer.Option(help="Build even if the plan is in the cache")] = False,
    check: Annotated[
        bool, typer.Option(help="Only try whether TensorRT takes the networks; needs no GPU")
    ] = False,
    capability: Annotated[
        str, typer.Option(help="With --check: compute capability to compile for")
    ] = "8.6",
    json_file: JsonFile = None,
) -> None:
    """Build the TensorRT plan of a bundle, test it on the canary and keep it for later runs.

    Options that are not given come from the bundle's manifest. Later commands and nodes on this
    machine use what was last built here.
    """
    opened = open_bundle(bundle)
    if check:
        _check(opened, capability, json_file)
        return
    from edge_runtime.engines import PRECISIONS
    from edge_runtime.engines.preparing import prepare

    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is unknown; expected {', '.join(PRECISIONS)}")
    given: dict[str, Any] = {
        "workspace_mib": workspace,
        "optimization_level": optimization_level,
        "dla_core": dla,
        "cuda_graph": cuda_graph,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    with _progress() as progress:
        prepared = prepare(opened, precision, overrides, force, progress)
    try:
        _report(prepared, json_file)
    finally:
        prepared.engine.close()
    chosen = () if precision == "auto" else ("--precision", precision)
    terminal.next_command("fieldsight-run", "benchmark", bundle, "--backend", "tensorrt", *chosen)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar for each phase of the build, inner phases below the outer; gone when done."""
    with terminal.progress_bar() as bars:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)
            if done >= total:
                bars.remove_task(tasks.pop(phase))

        yield progress


def _report(prepared: Prepared, json_file: JsonFile) -> None:
    engine = prepared.engine
    report: dict[str, Any] = {
        "engine": engine.name,
        "plan": str(prepared.plan),
        "bytes": prepared.plan.stat().st_size,
        "built": prepared.built,
        "seconds": prepared.seconds,
        "cuda_graph": engine.uses_cuda_graph,
        "options": prepared.options.model_dump(),
        "self_test": prepared.self_test,
    }
    table = terminal.table_of(engine.name)
    table.add_row("plan", "built now" if prepared.built else "was in the cache; --force rebuilds")
    table.add_row("seconds", f"{prepared.seconds:.1f}")
    table.add_row("CUDA graph", "yes" if engine.uses_cuda_graph else "no")
    for name, value in terminal.flat(report["options"]):
        table.add_row(name, value)
    for name, value in terminal.flat(prepared.self_test or {"self-test": "no canary.npz"}):
        table.add_row(name, value)
    terminal.console.print(table)
    if prepared.built:
        terminal.wrote(prepared.plan)
    terminal.write_json(json_file, report)


def _check(bundle: Bundle, capability: str, json_file: JsonFile) -> None:
    """Compile every network of the bundle for a GPU that need not be here."""
    from edge_runtime.compile_check import check_bundle

    version = re.fullmatch(r"(\d{1,2})\.(\d)", capability)
    if not version:
        raise InputError(f"--capability '{capability}': expected MAJOR.MINOR, such as 8.6")
    with terminal.errors.status(f"compiling for compute capability {capability}"):
        reports = check_bundle(bundle, capability=(int(version[1]), int(version[2])))
    columns = ("file", "precision", "compiles", "seconds", "layers", "by precision")
    table = terminal.table_of(f"TensorRT, compute capability {capability}", *columns)
    for report in reports:
        kinds = ", ".join(f"{n} {kind}" for kind, n in report.layers_by_precision.items())
        verdict = "yes" if report.ok else "NO"
        figures = f"{report.seconds:.1f}", str(report.layers), kinds
        table.add_row(report.file, report.precision, verdict, *figures)
    terminal.console.print(table)
    terminal.write_json(json_file, {"reports": [asdict(report) for report in reports]})
    if refused := [report for report in reports if not report.ok]:
        lines = [f"{r.file}: {problem}" for r in refused for problem in r.problems or ["refused"]]
        raise RefusedError("TensorRT does not take every network:\n" + "\n".join(lines))
    terminal.next_command("fieldsight-run", "build", bundle.path)
