"""Dockerfile, compose file, unit and scripts: linted, parsed, and held against each other."""

from __future__ import annotations

import ast
import fnmatch
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = ROOT / "Dockerfile.jetson"
SCRIPTS = [*sorted(DEPLOY.rglob("*.sh")), ROOT / "scripts" / "flash-jetson.sh"]
BIN = Path(sys.executable).parent


def tool(name: str) -> str:
    """Path of a linter, from this environment before the system's."""
    found = shutil.which(name, path=str(BIN)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} has no wheel for this machine; `make setup` installs it elsewhere")
    return found


def test_the_dockerfile_is_clean_under_hadolint(tmp_path: Path) -> None:
    hadolint = tool("hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text(DOCKERFILE.read_text().replace("WORKDIR /src", "WORKDIR src"))
    assert subprocess.run([hadolint, str(spoilt)], capture_output=True).returncode != 0


def test_scripts_are_clean_under_shellcheck() -> None:
    assert len(SCRIPTS) == 5
    done = subprocess.run([tool("shellcheck"), "-x", *map(str, SCRIPTS)], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def copied_from_here() -> Iterator[str]:
    """Every path that the Dockerfile takes from the build context."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not any(word.startswith("--from") for word in words):
            yield from (word for word in words[1:-1] if not word.startswith("--"))
        yield from re.findall(r"--mount=type=bind,source=([^,]+)", line)


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if "!" in line
    ]
    paths = {path.replace("${JETPACK}", number) for path in copied_from_here() for number in "67"}
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), f"{path} is copied into the image and absent"
        assert any(fnmatch.fnmatch(f"{path}/", f"{kept}/*") for kept in allowed), path


@pytest.mark.parametrize("jetpack", ["6", "7"])
def test_pinned_packages_meet_what_the_project_asks_for(jetpack: str) -> None:
    lines = (DEPLOY / "image" / f"constraints-jetpack{jetpack}.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    project = (ROOT / "pyproject.toml").read_text()
    needed = ast.literal_eval(
        "[" + re.search(r"^dependencies = \[(.*?)^\]", project, re.S | re.M)[1] + "]"
    )
    needed += ast.literal_eval(re.search(r"^jetson = (\[.*?\])", project, re.S | re.M)[1])
    for requirement in map(Requirement, needed):
        assert pins[requirement.name.lower()] in requirement.specifier, requirement
    assert pins["numpy"].startswith("1."), "ROS 2's messages are compiled against NumPy 1"
    assert "torch" not in pins


class Strict(BaseModel):
    """As in the Compose specification, as far as this project uses it."""

    model_config = ConfigDict(extra="forbid")


class Bind(Strict):
    create_host_path: bool


class Mount(Strict):
    type: Literal["bind"]
    source: str
    target: str
    read_only: bool
    bind: Bind


class Healthcheck(Strict):
    test: list[str] | None = None
    interval: str | None = Field(None, pattern=r"^\d+s$")
    timeout: str | None = Field(None, pattern=r"^\d+s$")
    start_period: str | None = Field(None, pattern=r"^\d+s$")
    retries: int | None = None
    disable: bool | None = None


class Logging(Strict):
    driver: Literal["json-file"]
    options: dict[str, str]


class Service(Strict):
    image: str
    runtime: Literal["nvidia"]
    network_mode: Literal["host"]
    ipc: Literal["host"]
    env_file: str
    group_add: list[str]
    init: bool
    cap_drop: list[str]
    security_opt: list[str]
    restart: Literal["unless-stopped"]
    stop_signal: str
    stop_grace_period: str
    pids_limit: int
    logging: Logging
    container_name: str
    mem_limit: str
    cpus: str | float
    healthcheck: Healthcheck
    ulimits: dict[str, int] | None = None
    volumes: list[Mount | str] = []
    profiles: list[str] = []
    devices: list[str] = []
    command: list[str] = []


class Volume(Strict):
    name: str


class Compose(Strict):
    name: str
    services: dict[str, Service]
    volumes: dict[str, Volume]


def compose() -> Compose:
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return Compose.model_validate({k: v for k, v in document.items() if not k.startswith("x-")})


def test_the_compose_file_is_valid() -> None:
    file = compose()
    nodes = file.services["nodes"]
    bundle = next(mount for mount in nodes.volumes if isinstance(mount, Mount))
    assert bundle.read_only and bundle.target == "/bundle"
    assert "state:/var/lib/fieldsight" in nodes.volumes
    assert nodes.container_name == "fieldsight"  # the name that board.sh asks about
    assert nodes.logging.options == {"max-size": "10m", "max-file": "5"}
    assert file.volumes["state"].name == "fieldsight-state"  # the one that board.sh builds into
    assert set(file.services["camera"].devices) == {"${FIELDSIGHT_CAMERA:-/dev/video0}:/dev/video0"}


def test_every_variable_is_known_to_its_reader() -> None:
    """Settings of a board reach the nodes: each is read, and each that is read is explained."""
    start = (DEPLOY / "image" / "start-nodes.sh").read_text()
    settings = re.findall(
        r"^(FIELDSIGHT_\w+)=", (DEPLOY / "board" / "fieldsight.env").read_text(), re.M
    )
    read = set(re.findall(r"\$\{(FIELDSIGHT_\w+)", start))
    assert set(settings) <= read
    assert read - set(settings) <= {"FIELDSIGHT_BUNDLE"}
    board = (DEPLOY / "board" / "board.sh").read_text()
    written = set(re.findall(r"^(FIELDSIGHT_\w+)=\$\(|^(FIELDSIGHT_\w+)=", board, re.M))
    variables = set(re.findall(r"\$\{(FIELDSIGHT_\w+)", (ROOT / "compose.yaml").read_text()))
    assert {name for pair in written for name in pair if name} <= variables
    launch = (ROOT / "ros2_ws/src/fieldsight/launch/perception.launch.py").read_text()
    for argument in re.findall(r"^add (\w+) ", start, re.M):
        assert f'"{argument}"' in launch, f"the launch file has no argument '{argument}'"


def test_the_unit_is_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze absent")
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (DEPLOY / "board" / "fieldsight.service").read_text()
    assert text.count("/usr/bin/docker") == 3
    unit = tmp_path / "fieldsight.service"
    unit.write_text(text.replace("/usr/bin/docker", str(program)))
    (tmp_path / "docker.service").write_text(f"[Service]\nExecStart={program}\n")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run([*command, str(unit)], capture_output=True, text=True)
    assert done.returncode == 0 and "fieldsight" not in done.stderr, done.stderr
    unit.write_text(unit.read_text().replace("RestartSec=5", "RestartSec=soon"))
    done = subprocess.run([*command, str(unit)], capture_output=True, text=True)
    assert "Failed to parse" in done.stderr
