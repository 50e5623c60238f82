"""`fieldsight-calibrate`: a file a command; each adds itself to `app` when imported."""

from __future__ import annotations

from calibration.cli import camera, fp16, int8  # noqa: I001
from calibration.cli.app import app
from edge_runtime.terminal import run_app


def main() -> None:
    """Run the command line."""
    run_app(app, extra="calibrate")


__all__ = ["app", "camera", "fp16", "int8", "main"]
