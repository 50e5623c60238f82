#!/usr/bin/env python3
"""Stands in for docker, systemctl, sysctl, uname and df, on the workstation and on the board.

The name it is called by says which. It keeps its images and what runs in the folder FAKE_STATE,
and does what `behaviour.json` there says; everything it was asked for is in `calls.jsonl`.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

STATE = Path(os.environ.get("FAKE_STATE", "."))
ROOT = Path(os.environ.get("FIELDSIGHT_BOARD_PREFIX", "/")) / "opt" / "fieldsight"
PAYLOAD_BYTES = 2_000_000  # of a saved image, incompressible


def read(name: str, default: Any) -> Any:
    path = STATE / name
    return json.loads(path.read_text()) if path.exists() else default


def write(name: str, value: Any) -> None:
    (STATE / name).write_text(json.dumps(value))


def find(reference: str) -> dict[str, Any] | None:
    """The image with this id or tag."""
    for image in read("images.json", []):
        if reference == image["id"] or reference in image["tags"]:
            return image
    return None


def image_inspect(arguments: list[str]) -> int:
    image = find(arguments[-1])
    if image is None:
        return 1
    fields = [image["id"], image["architecture"], str(image["size"]), image["jetpack"]]
    print(" ".join(fields) if "Architecture" in arguments[-2] else image["id"])
    return 0


def image_rm(arguments: list[str]) -> int:
    images = read("images.json", [])
    for image in images:
        image["tags"] = [tag for tag in image["tags"] if tag != arguments[-1]]
    write("images.json", [image for image in images if image["tags"]])
    return 0


def save(arguments: list[str]) -> int:
    image = find(arguments[-1])
    assert image is not None
    payload = random.Random(image["id"]).randbytes(PAYLOAD_BYTES)
    sys.stdout.buffer.write(json.dumps(image).encode() + b"\n" + payload)
    return 0


def load(arguments: list[str]) -> int:
    with gzip.open(arguments[-1]) as file:
        image = json.loads(file.readline())
        if len(file.read()) != PAYLOAD_BYTES:
            return 1
    write("images.json", [*read("images.json", []), image | {"tags": []}])
    return 0


def tag(arguments: list[str]) -> int:
    source, name = arguments[-2:]
    images = read("images.json", [])
    target = find(source)
    if target is None:
        return 1
    for image in images:
        image["tags"] = [old for old in image["tags"] if old != name]
        if image["id"] == target["id"]:
            image["tags"].append(name)
    write("images.json", images)
    return 0


def run(arguments: list[str]) -> int:
    """`docker run ... IMAGE fieldsight-run COMMAND`: fails if told to, or if a part is absent."""
    place = arguments.index("fieldsight-run")
    bundle = next(word for word in arguments if word.endswith(":/bundle:ro"))
    if find(arguments[place - 1]) is None or not Path(bundle.split(":")[0]).is_dir():
        return 125
    command = arguments[place + 1]
    if command in read("behaviour.json", {}).get("fail", []):
        print(f"{command}: told to fail")
        return 3
    return 0


def inspect(arguments: list[str]) -> int:
    running = read("running.json", None)
    if running is None:
        return 1
    sick = running["image"] in read("behaviour.json", {}).get("unhealthy", [])
    print("unhealthy" if sick else "healthy")
    return 0


def docker(arguments: list[str]) -> int:
    answers = {
        "version": "28.2.2",
        "info": '{"nvidia":{}}' if "json" in arguments[-1] else str(STATE),
        "compose": "2.40.0",
        "logs": "",
    }
    if arguments[0] in answers:
        if "docker" in read("behaviour.json", {}).get("absent", []):
            return 127
        print(answers[arguments[0]])
        return 0
    commands = {"save": save, "load": load, "tag": tag, "run": run, "inspect": inspect}
    if arguments[0] == "image":
        return {"inspect": image_inspect, "rm": image_rm}[arguments[1]](arguments)
    return commands[arguments[0]](arguments)


def systemctl(arguments: list[str]) -> int:
    if arguments[0] == "restart":
        values = (ROOT / "current" / "release.env").read_text().splitlines()
        settings = dict(line.split("=", 1) for line in values)
        bundle = Path(settings["FIELDSIGHT_BUNDLE_DIR"])
        if find(settings["FIELDSIGHT_IMAGE"]) is None or not (bundle / "manifest.json").is_file():
            return 1
        write("running.json", {"image": settings["FIELDSIGHT_IMAGE"], "bundle": bundle.name})
    elif arguments[0] == "stop":
        write("running.json", None)
    return 0


def uname(arguments: list[str]) -> int:
    print(read("behaviour.json", {}).get("architecture", "aarch64"))
    return 0


def df(arguments: list[str]) -> int:
    free = read("behaviour.json", {}).get("free_mb", 90_000)
    print("Filesystem 1048576-blocks Used Available Capacity Mounted on")
    print(f"/dev/nvme0n1p1 100000 1 {free} 1% /")
    return 0


def sysctl(arguments: list[str]) -> int:
    return 0 if Path(arguments[-1]).is_file() else 1


def main() -> int:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    with (STATE / "calls.jsonl").open("a") as log:
        log.write(json.dumps([name, *arguments]) + "\n")
    commands = {"docker": docker, "systemctl": systemctl, "sysctl": sysctl}
    return (commands | {"uname": uname, "df": df})[name](arguments)


if __name__ == "__main__":
    sys.exit(main())
