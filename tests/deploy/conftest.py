"""A board to flash: a real sshd on the loopback whose docker and systemd are stand-ins."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_runtime.bundle import create_bundle

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_board.py")
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ORIN = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n"
)
PATIENCE_S = 60


def make_bundle(path: Path, shift: float = 0) -> Path:
    """A bundle as small as can be; another `shift` makes another content."""
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
            node("ReduceMean", ["x", "space"], ["mean"], keepdims=0),
            node("Add", ["mean", "shift"], ["first"]),
            node("Concat", ["first", "first"], ["statistics"], axis=0),
            node("ArgMax", ["x"], ["best"], axis=3, keepdims=0),
            node("Squeeze", ["best", "zero"], ["plane"]),
            node("Cast", ["plane"], ["mask"], to=TensorProto.UINT8),
        ],
        "small",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 3]),
            helper.make_tensor_value_info("adapter", TensorProto.FLOAT, [6]),
        ],
        [
            helper.make_tensor_value_info("mask", TensorProto.UINT8, [8, 8]),
            helper.make_tensor_value_info("statistics", TensorProto.FLOAT, [6]),
        ],
        [
            onnx.numpy_helper.from_array(np.array([0, 1, 2], np.int64), "space"),
            onnx.numpy_helper.from_array(np.array([0], np.int64), "zero"),
            onnx.numpy_helper.from_array(np.full(3, shift, np.float32), "shift"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    fields: dict[str, Any] = {
        "tasks": ["segmentation"],
        "input": {"height": 8, "width": 8},
        "inputs": [
            {"name": "image", "dtype": "uint8", "shape": [1, 8, 8, 3]},
            {"name": "adapter", "dtype": "float32", "shape": [6]},
        ],
        "outputs": [
            {"name": "mask", "dtype": "uint8", "shape": [8, 8]},
            {"name": "statistics", "dtype": "float32", "shape": [6]},
        ],
        "classes": {
            "segmentation": [{"name": name, "color": [0, 0, 0]} for name in ("r", "g", "b")]
        },
        "student": {
            "trunk": "none",
            "neck_width": 1,
            "head_width": 1,
            "head_depth": 1,
            "adapter": [{"name": "stem", "channels": 3}],
        },
        "metrics": {},
    }
    return create_bundle(path, fields, {"model.onnx": model.SerializeToString()}).path


class Side:
    """The workstation or the board: a folder of commands and what they know."""

    def __init__(self, root: Path) -> None:
        self.state = root / "state"
        self.bin = root / "bin"
        self.state.mkdir(parents=True)
        self.bin.mkdir()
        self.behave()

    def offer(self, *names: str) -> None:
        """Put stand-ins of these commands on the path; -IS saves most of Python's start."""
        for name in names:
            (self.bin / name).write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
            (self.bin / name).chmod(0o755)

    def behave(self, **what: Any) -> None:
        """What the stand-ins shall do from now on."""
        (self.state / "behaviour.json").write_text(json.dumps(what))

    def known(self, name: str, default: Any = None) -> Any:
        path = self.state / name
        return json.loads(path.read_text()) if path.exists() else default

    def calls(self, *words: str) -> list[list[str]]:
        """The calls that had all these words."""
        path = self.state / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if set(words) <= set(call)]


class Board(Side):
    """The board behind the sshd, and the workstation that flashes it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "board")
        self.prefix = root / "board" / "root"
        self.home = self.prefix / "opt" / "fieldsight"
        (self.prefix / "etc").mkdir(parents=True)
        self.release(ORIN)
        self.offer("docker", "systemctl", "sysctl", "uname", "df")
        self.here = Side(root / "here")
        self.here.offer("docker")
        self.config = root / "ssh_config"
        self.cache = root / "cache"

    def release(self, text: str) -> None:
        """Write /etc/nv_tegra_release."""
        (self.prefix / "etc" / "nv_tegra_release").write_text(text)

    def image(self, number: int, jetpack: str = "6", architecture: str = "arm64") -> str:
        """Give the workstation an image and tag it; returns the tag that the board will use."""
        identity = f"{number:064x}"[::-1]
        images = [
            {
                "id": f"sha256:{identity}",
                "tags": ["fieldsight:jetpack6"],
                "architecture": architecture,
                "size": 4_000_000,
                "jetpack": jetpack,
            }
        ]
        (self.here.state / "images.json").write_text(json.dumps(images))
        return f"fieldsight:{identity[:12]}"

    def flash(self, *arguments: object, host: str = "board") -> subprocess.CompletedProcess[str]:
        """Run flash-jetson.sh."""
        words = ["bash", str(ROOT / "scripts" / "flash-jetson.sh"), host, *map(str, arguments)]
        environment = os.environ | {
            "PATH": f"{self.here.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FAKE_STATE": str(self.here.state),
            "FIELDSIGHT_BOARD_PREFIX": str(self.prefix),
            "XDG_CACHE_HOME": str(self.cache),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [*words, "--ssh-config", str(self.config)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
        )

    @property
    def runs(self) -> dict[str, str] | None:
        """Image and bundle that the nodes run."""
        return self.known("running.json")

    def link(self, name: str) -> str | None:
        link = self.home / name
        return link.readlink().name if link.is_symlink() else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"sshd does not answer: {log.read_text()}")


@pytest.fixture
def unreachable(tmp_path: Path) -> Board:
    """A board that nobody listens on."""
    return Board(tmp_path)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """A board with JetPack 6.2 behind an sshd on 127.0.0.1, ended with the test."""
    missing = [name for name in ("ssh", "ssh-keygen", "rsync", "gzip") if not shutil.which(name)]
    if SSHD is None or missing:
        names = [*missing, *([] if SSHD else ["sshd"])]
        pytest.skip(f"{', '.join(names)} absent; apt install openssh-server rsync")
    board = Board(tmp_path)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(words, check=True)
    port = free_port()
    path = f"{board.bin}:{os.environ['PATH']}"
    settings = [f"PATH={path}", f"FAKE_STATE={board.state}", "FIELDSIGHT_POLL=0.1"]
    settings += [f"FIELDSIGHT_BOARD_PREFIX={board.prefix}"]
    server = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {keys / 'host'}",
        f"PidFile {keys / 'pid'}",
        f"AuthorizedKeysFile {keys / 'user.pub'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "SetEnv " + " ".join(settings),
    ]
    (keys / "sshd_config").write_text("\n".join(server) + "\n")
    client = "Host *\n  HostName 127.0.0.1\n"
    client += f"  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {keys / 'user'}\n"
    client += "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    board.config.write_text(client)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd drops its privileges
    log = tmp_path / "sshd.log"
    words = [SSHD, "-D", "-f", str(keys / "sshd_config"), "-E", str(log)]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        wait_for(port, process, log)
        yield board
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of different content."""
    folder = tmp_path_factory.mktemp("bundles")
    return make_bundle(folder / "first.bundle"), make_bundle(folder / "second.bundle", shift=1)
