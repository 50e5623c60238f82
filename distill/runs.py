"""Run folders: what a training run writes beside its result, and how it is read again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from distill.settings import LoopSettings
from distill.teachers import load_weights
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_bytes, atomic_write_text
from edge_runtime.student import Student

_RECORDED = ("torch", "timm", "lightning-fabric", "numpy", "opencv-python", "onnxruntime")


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit this code runs from, if it runs from a checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def write_config(out: Path, command: str, settings: LoopSettings, extra: dict[str, Any]) -> None:
    """Writes config.json: the resolved configuration and versions."""
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "command": command,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "git_commit": git_commit(),
        **extra,
    }
    atomic_write_text(out / "config.json", json.dumps(config, indent=2))


def save_student(out: Path, student: nn.Module) -> Path:
    """Writes student.safetensors."""
    state = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
    path = out / "student.safetensors"
    atomic_write_bytes(path, save(state))
    return path


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a run folder.

    Raises:
        InputError: it is no finished run.
    """
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{run} is not a run folder: config.json: {error}") from error
    if not (run / "student.safetensors").is_file():
        raise InputError(f"{run} has no student.safetensors: its run is not finished")
    return config


def load_student(run: Path) -> tuple[Student, dict[str, Any]]:
    """The trained student of a finetuning run and its configuration."""
    config = read_config(run)
    if (head := config.get("head", "student")) != "student":
        raise InputError(
            f"{run} is a model for workstations ({head}), not a student: no bundle can hold it. "
            "Fine-tune a student instead; with --pseudo-labels this run can label images for it"
        )
    settings = config["settings"]
    student = Student(
        config["student"],
        {task: len(names) for task, names in config.get("classes", {}).items()},
        settings["neck_width"],
        settings["head_width"],
        settings["head_depth"],
    )
    load_weights(student, run / "student.safetensors", f"student {config['student']}")
    return student.eval(), config
