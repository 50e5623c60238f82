"""The application that the command files add themselves to, and the options they share."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="fieldsight-run",
    help="Run a model bundle: look at it, check it, use it on images, time it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Backend = Annotated[str, typer.Option(help="auto, onnxruntime or tensorrt")]
Precision = Annotated[str, typer.Option(help="auto, fp32, fp16 or int8")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads for one inference")]


@app.callback()
def _settings(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)
