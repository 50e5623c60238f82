"""The rules about which room may import which, held by reading the sources and by importing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"edge_runtime", "calibration", "distill"}

BLOCKED_IMPORT = """
import sys

BLOCKED = {blocked!r}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{{name}} is blocked by this test")

sys.meta_path.insert(0, Block())
import {modules}
loaded = BLOCKED & {{name.partition(".")[0] for name in sys.modules}}
assert not loaded, f"imported although blocked: {{sorted(loaded)}}"
"""

WORKSTATION_ONLY = {
    "torch",
    "torchvision",
    "timm",
    "lightning_fabric",
    "lightly",
    "onnx",
    "onnxscript",
    "supervision",
    "faster_coco_eval",
    "tensorboard",
    "rclpy",
}


def imported_packages(file: Path) -> set[str]:
    """Top-level names of everything that a source file imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def run_with_blocked_imports(modules: str) -> subprocess.CompletedProcess[str]:
    """Import `modules` in a fresh interpreter where the workstation's packages cannot be found."""
    code = BLOCKED_IMPORT.format(blocked=WORKSTATION_ONLY, modules=modules)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("edge_runtime", {"edge_runtime"}),
        ("calibration", {"calibration", "edge_runtime"}),
        ("ros2_ws/src/fieldsight", {"edge_runtime"}),
    ],
)
def test_rooms_import_downwards_only(folder: str, allowed: set[str]) -> None:
    files = sources(folder)
    assert files, f"{folder} holds no Python source"
    wrong = {
        str(file.relative_to(ROOT)): sorted(extra)
        for file in files
        if (extra := (imported_packages(file) & OURS) - allowed)
    }
    assert not wrong


@pytest.mark.parametrize(
    "modules", ["edge_runtime", "edge_runtime.perception, edge_runtime.cli, calibration.cli"]
)
def test_robot_runtime_imports_without_the_workstation(modules: str) -> None:
    result = run_with_blocked_imports(modules)
    assert result.returncode == 0, result.stderr


def test_the_blocker_blocks() -> None:
    result = run_with_blocked_imports("edge_runtime.student")
    assert result.returncode != 0
    assert "is blocked by this test" in result.stderr


def test_source_files_stay_small() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for folder in (*sorted(OURS), "ros2_ws/src")
        for file in sources(folder)
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long, "files over 350 lines: split each by purpose"
