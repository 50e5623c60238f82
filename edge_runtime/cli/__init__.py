"""`fieldsight-run`: what a robot does with a bundle, from the command line.

A file a command; each adds itself to `app` when imported, in the order of `--help`.
"""

from __future__ import annotations

from edge_runtime import terminal
from edge_runtime.cli import adapt, benchmark, build, consolidate, doctor, inspect, predict  # noqa: I001
from edge_runtime.cli.app import app


def main() -> None:
    """Run the command line."""
    terminal.run_app(app)


__all__ = [
    "adapt",
    "app",
    "benchmark",
    "build",
    "consolidate",
    "doctor",
    "inspect",
    "main",
    "predict",
]
