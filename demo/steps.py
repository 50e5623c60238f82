"""Running a demo's steps as the commands that a user would type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Step:
    """One command: what it was, how long it took (seconds), why it did not run if it did not."""

    title: str
    command: str
    seconds: float = 0.0
    skipped: str | None = None


@dataclass
class Journal:
    """The steps taken so far, in order."""

    steps: list[Step] = field(default_factory=list)

    def run(self, title: str, *command: str | Path, env: dict[str, str] | None = None) -> None:
        """Prints and runs one command from the project's root; ends the demo if it fails."""
        words = [str(word) for word in command]
        step = self.start(title, words, env)
        began = time.monotonic()
        code = subprocess.run(executable(words), cwd=ROOT, env=environment(env)).returncode
        step.seconds = round(time.monotonic() - began, 1)
        if code:
            raise SystemExit(f"demo stopped: {words[0]} ended with code {code} at '{title}'")
        print(f"  ({step.seconds:.1f} s)", flush=True)

    def start(self, title: str, words: list[str], env: dict[str, str] | None = None) -> Step:
        """Announces a command and notes it."""
        pairs = (f"{key}={shlex.quote(value)} " for key, value in (env or {}).items())
        prefix = "".join(relative(list(pairs)))
        step = Step(title, prefix + shlex.join(relative(words)))
        self.steps.append(step)
        print(f"\n== {title}\n$ {step.command}", flush=True)
        return step

    def skip(self, title: str, reason: str) -> None:
        """Notes a step that cannot run here."""
        self.steps.append(Step(title, "", skipped=reason))
        print(f"\n== {title}\n  skipped: {reason}", flush=True)

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(step) for step in self.steps]


def relative(words: list[str]) -> list[str]:
    """The words with paths under the project's root shortened."""
    return [word.replace(f"{ROOT}/", "") for word in words]


def executable(words: list[str]) -> list[str]:
    """Resolves `python` and this project's commands to those of the running environment."""
    bin_dir = Path(sys.executable).parent
    first = sys.executable if words[0] == "python" else words[0]
    if first.startswith("fieldsight-"):
        first = str(bin_dir / first)
    return [first, *words[1:]]


def environment(extra: dict[str, str] | None) -> dict[str, str]:
    """This process's environment with `extra` on top; relative PYTHONPATH made absolute."""
    env = {**os.environ, **(extra or {})}
    if extra and "PYTHONPATH" in extra:
        env["PYTHONPATH"] = str(ROOT / extra["PYTHONPATH"])
    return env
