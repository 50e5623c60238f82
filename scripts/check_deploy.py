"""Check over the network that what the Jetson image and compose file name does exist.

    .venv/bin/python scripts/check_deploy.py [--rosdistro FOLDER]

PyPI: every pinned wheel for aarch64 and the image's Python, together, as pip would resolve them.
apt: names that Debian shares with Ubuntu, by apt-cache. ROS: by a checkout of ros/rosdistro.
Compose: by the Compose specification's JSON schema, out of docker-compose's wheel. What cannot be
asked from here (NVIDIA's registry and apt sources, the downloads held by checksum) is listed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "Dockerfile.jetson"
PYTHONS = {"6": "310", "7": "312"}
ROS = {"6": "humble", "7": "jazzy"}
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")
# Names that only NVIDIA's or ROS's apt sources have, and that of an Ubuntu transition.
ELSEWHERE = re.compile(r"^(libnv|python3-libnv|python3-colcon|ros-)")
SCHEMA_WHEEL = "docker-compose==1.29.2"
SCHEMA_FILE = "compose/config/compose_spec.json"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

Result = tuple[str, bool | None, str]  # what, whether it is there (None: not asked), how


def instructions() -> list[str]:
    """The Dockerfile's instructions, each on one line, without comments."""
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def apt_names() -> list[str]:
    """Every package that the Dockerfile installs by apt-get, without versions."""
    names: set[str] = set()
    for line in instructions():
        for command in line.split("&&"):
            words = command.split()
            if words[:2] == ["apt-get", "install"]:
                wanted = [word.strip('"') for word in words[2:] if not word.startswith("-")]
                names.update(word.partition("=")[0] for word in wanted)
    return sorted(names)


def check_apt() -> Iterator[Result]:
    """Names shared with Debian, against this machine's apt."""
    for name in apt_names():
        if ELSEWHERE.match(name):
            continue
        found = subprocess.run(["apt-cache", "show", name], capture_output=True)
        yield f"apt {name}", found.returncode == 0, "Debian's apt-cache"


def check_ros(rosdistro: Path | None) -> Iterator[Result]:
    """ROS names, against the distribution files of a checkout of ros/rosdistro."""
    names = [name for name in apt_names() if name.startswith("ros-${ROS_DISTRO}-")]
    for distribution in ROS.values():
        packages: set[str] = set()
        if rosdistro is not None:
            file = rosdistro / distribution / "distribution.yaml"
            for name, entry in yaml.safe_load(file.read_text())["repositories"].items():
                release = entry.get("release") or {}
                packages.update(release.get("packages", [name]))
        for name in names:
            package = name.removeprefix("ros-${ROS_DISTRO}-").replace("-", "_")
            there = package in packages if rosdistro else None
            yield f"apt ros-{distribution}-{package.replace('_', '-')}", there, "rosdistro"


def check_pip(jetpack: str) -> Iterator[Result]:
    """All pins of one JetPack at once, as wheels; pycuda as the sources that it is built from."""
    constraints = ROOT / "deploy" / "image" / f"constraints-jetpack{jetpack}.txt"
    pins = [line for line in constraints.read_text().splitlines() if "==" in line]
    wheels = [pin for pin in pins if not pin.startswith("pycuda==")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [*PIP, "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--target", folder, "--only-binary=:all:"]
        command += ["--python-version", PYTHONS[jetpack], "--implementation", "cp"]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run([*command, *wheels], capture_output=True, text=True)
        found = {}
        if report.is_file():
            for item in json.loads(report.read_text())["install"]:
                found[item["metadata"]["name"].lower().replace("_", "-")] = item
    how = f"wheel for cp{PYTHONS[jetpack]}, aarch64"
    for pin in wheels:
        yield f"pip {pin}", pin.lower().replace("_", "-").split("==")[0] in found, how
    if done.returncode:
        yield "pip resolution", False, done.stderr.strip().splitlines()[-1][:200]
    pinned = {pin.lower().replace("_", "-").split("==")[0] for pin in wheels}
    for name in sorted(found.keys() - pinned):
        yield f"pip {name}", False, "needed by another and not pinned"
    for pin in set(pins) - set(wheels):
        with tempfile.TemporaryDirectory() as folder:
            command = [*PIP, "download", "--quiet", "--no-deps", "--no-binary=:all:"]
            command += ["--no-build-isolation", "--dest", folder, pin]
            subprocess.run(command, capture_output=True)
            yield f"pip {pin}", bool(list(Path(folder).glob("*.tar.gz"))), "sources"


def check_compose() -> Iterator[Result]:
    """compose.yaml, against the specification's schema; `${...}` stand for their defaults."""
    import jsonschema

    with tempfile.TemporaryDirectory() as folder:
        command = [*PIP, "download", "--quiet", "--no-deps", "--dest", folder, SCHEMA_WHEEL]
        subprocess.run(command, check=True, capture_output=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            schema = json.loads(wheel.read(SCHEMA_FILE))
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+(?::[-?])?([^}]*)\}", r"\1", text))
    name = document.pop("name")  # this and create_host_path are newer than that schema
    document["services"]["nodes"]["volumes"][0]["bind"].pop("create_host_path")
    validator = jsonschema.Draft201909Validator(schema)
    for error in validator.iter_errors(document):
        place = ".".join(map(str, error.absolute_path))
        yield f"compose {place}", False, error.message[:200]
    if not list(validator.iter_errors(document)):
        yield f"compose {name}", True, f"schema of {SCHEMA_WHEEL}"
    spoilt = json.loads(json.dumps(document))
    spoilt["services"]["nodes"]["restrat"] = "always"
    yield "compose, spoilt", not validator.is_valid(spoilt), "is refused by the schema"


def not_asked() -> Iterator[Result]:
    """What only NVIDIA's and GitHub's servers can tell."""
    for line in instructions():
        words = line.split()
        if words[0] == "FROM" and "/" in words[1]:
            yield f"image {words[1]}", None, "NVIDIA's registry"
        if words[0] == "ADD":
            yield f"download {next(word for word in words if '//' in word)}", None, "its server"
    for name in apt_names():
        if ELSEWHERE.match(name) and not name.startswith("ros-"):
            yield f"apt {name}", None, "NVIDIA's or ROS's apt source"


def main() -> int:
    """Print one line a name; exit code 1 if one is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rosdistro", type=Path, help="checkout of github.com/ros/rosdistro")
    arguments = parser.parse_args()
    results = [*check_apt(), *check_ros(arguments.rosdistro), *check_compose()]
    results += [result for jetpack in PYTHONS for result in check_pip(jetpack)]
    results += not_asked()
    for what, there, how in results:
        verdict = {True: "ok", False: "MISSING", None: "not asked"}[there]
        print(f"{verdict:10}{what}  ({how})")
    count = {
        verdict: sum(there is verdict for _, there, _ in results) for verdict in (True, False, None)
    }
    print(f"{count[True]} there, {count[False]} missing, {count[None]} not asked")
    return 1 if count[False] else 0


if __name__ == "__main__":
    sys.exit(main())
