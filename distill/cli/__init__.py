"""`fieldsight-distill`: a file a command; each adds itself to `app` when imported."""

from __future__ import annotations

# isort: off
# (the order of --help)
from distill.cli import pretrain, distill, finetune, export, predictor, evaluate, compare
from distill.cli.app import app
from edge_runtime.terminal import run_app


def main() -> None:
    """Run the command line."""
    run_app(app, extra="workstation")


__all__ = [
    "app",
    "compare",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "main",
    "predictor",
    "pretrain",
]
