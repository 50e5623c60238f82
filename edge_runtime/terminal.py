"""What the command lines share: tables, progress bars, JSON files, and how an error ends them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edge_runtime.errors import FieldsightError
from edge_runtime.files import atomic_write_text

console = Console()
errors = Console(stderr=True)

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder NAME.bundle")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON, too")
]


def run_app(app: typer.Typer, extra: str | None = None) -> None:
    """Run a command line; known errors are printed in red, without a traceback.

    Args:
        app: The commands.
        extra: The extra of the package that brings what they import beyond the robot's runtime.
    """
    try:
        app()
    except FieldsightError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        _fail(f"this needs the package '{error.name}': pip install 'fieldsight[{extra}]'", 2)
    except KeyboardInterrupt:
        errors.print("stopped", style="red")
        sys.exit(130)


def _fail(message: str, code: int) -> NoReturn:
    errors.print(f"Error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def progress_bar() -> Progress:
    """A bar on standard error that goes away when done."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeRemainingColumn(), console=errors, transient=True)


def table_of(title: str, *columns: str) -> Table:
    """An empty table: with columns, or of names and values if none are given."""
    if columns:
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        return table
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as ("a.b", "text") pairs."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append(
                (f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value))
            )
    return rows


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write `values` to `path`, if one was asked for, and say so."""
    if path is not None:
        atomic_write_text(path, json.dumps(values, indent=2) + "\n")
        wrote(path)


def wrote(*paths: Path | str) -> None:
    """Say what was written."""
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True, markup=False)


def next_command(*words: str | Path) -> None:
    """Say what to type next."""
    command = shlex.join(str(word) for word in words)
    console.print(f"next: {command}", style="dim", markup=False, highlight=False, soft_wrap=True)
