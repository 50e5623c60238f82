"""The application that the command files add themselves to, and what they share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.data.opening import open_data as open_data
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.terminal import console

app = typer.Typer(
    name="fieldsight-distill",
    help="Distil large teachers into a small student.",
    no_args_is_help=True,
    add_completion=False,
)

Out = Annotated[Path, typer.Option(help="Folder to write the run to.")]
Config = Annotated[Path | None, typer.Option("--config", help="Recipe YAML.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as KEY=VALUE.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Student = Annotated[str, typer.Option(help="timm name of the student's trunk.")]
Encoder = Annotated[
    Path | None, typer.Option(help="Start from: a run folder, trunk .safetensors, or hub.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Resume = Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")]
Devices = Annotated[int, typer.Option(min=1, help="Processes on this machine.")]
Nodes = Annotated[
    int, typer.Option("--num-nodes", min=1, help="Machines; see docs/pretraining.md.")
]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]


def with_seed(pairs: list[str] | None, seed: int | None) -> list[str]:
    """Overrides with --seed as one of them."""
    return [*(pairs or []), *([f"seed={seed}"] if seed is not None else [])]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of ``HEIGHTxWIDTH``."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise InputError(f"size {text!r} is not HEIGHTxWIDTH, for instance 256x320")
    return int(parts[0]), int(parts[1])


def finish(json_path: Path | None, figures: dict[str, Any], wrote: list[Path], then: str) -> None:
    """Writes --json and says what was written and what to type next; the first process does."""
    if int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0):
        return
    if json_path is not None:
        atomic_write_text(json_path, json.dumps(figures, indent=2))
        wrote = [*wrote, json_path]
    for path in wrote:
        console.print(f"wrote [bold]{path}[/bold]", soft_wrap=True)
    if then:
        console.print(f"next: {then}", soft_wrap=True, highlight=False)
