"""The application that the command files add themselves to."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="fieldsight-calibrate",
    help="Measure what a bundle needs before it travels: precision and camera.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def _settings() -> None:
    """Keeps a command's name necessary while there is only one."""
