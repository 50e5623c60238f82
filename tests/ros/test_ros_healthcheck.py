"""The container's health check asks a running node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 for this Python")
pytestmark = pytest.mark.ros

CHECK = Path(__file__).resolve().parents[2] / "deploy" / "image" / "healthcheck.py"


def ask(timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHECK), "--timeout", str(timeout)],
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_healthy_only_while_a_node_is_active(start, bundle_path: Path) -> None:
    absent = ask(timeout=1)
    assert absent.returncode == 1 and "no perception node reported" in absent.stdout

    node = start(bundle=bundle_path, autostart=True)
    active = ask(timeout=60)
    assert active.returncode == 0, active.stdout + active.stderr + node.output
    assert node.stop() == 0

    idle = start(bundle=bundle_path)
    unconfigured = ask(timeout=60)
    assert unconfigured.returncode == 1, unconfigured.stdout
    assert "unconfigured, expected active" in unconfigured.stdout
    assert idle.stop() == 0
