"""Nodes as processes of their own, and a client that talks to them over DDS on this machine."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ros2_ws" / "src" / "fieldsight"
PATIENCE_S = 60  # how long to wait for what must come, on however slow a machine
sys.path.insert(0, str(PACKAGE))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_bundle_parts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle: constant boxes of two classes, mask = strongest colour channel."""
    from edge_runtime.bundle import create_bundle

    parts = _load(ROOT / "tests" / "edge_runtime" / "conftest.py")
    network = parts.tiny_network()
    files = {"model.onnx": network, "canary.npz": parts.tiny_canary(network)}
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    return create_bundle(path, parts.tiny_fields(), files).path


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    """rclpy on the loopback, in a domain of our own, with the profile that we ship."""
    import rclpy

    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(PACKAGE / "config" / "fastdds.xml")
    rclpy.init()
    yield
    rclpy.try_shutdown()


class NodeProcess:
    """A node in a process of its own, in a namespace of its own."""

    def __init__(self, module: str, namespace: str, log: Path, parameters: dict[str, Any]) -> None:
        words = [sys.executable, "-m", module, "--ros-args", "-r", f"__ns:={namespace}"]
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words += ["-p", f"{name}:={text}"]
        paths = [str(PACKAGE), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
        }
        self.namespace = namespace
        self._log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._log.read_text(errors="replace")

    def memory_kb(self) -> int:
        """Private memory; the shared segments of DDS are left out."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0])

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """End it as Ctrl-C would; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture
def start(ros: None, tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Starts nodes; ends those that a test leaves running."""
    started: list[NodeProcess] = []
    namespace = f"/test_{random.randrange(10**9)}"

    def start_node(module: str = "fieldsight.perception_node", **parameters: Any) -> NodeProcess:
        log = tmp_path / f"node_{len(started)}.log"
        node = NodeProcess(module, namespace, log, parameters)
        started.append(node)
        return node

    yield start_node
    for node in started:
        if node.process.poll() is None:
            node.process.send_signal(signal.SIGCONT)
            node.stop()


@pytest.fixture
def client(ros: None) -> Iterator[Callable[..., Any]]:
    """Makes clients that speak to a node process."""
    from ros_client import Client

    made: list[Any] = []

    def make_client(node: NodeProcess, name: str = "perception", kind: Any = Client) -> Any:
        made.append(kind(node, name))
        return made[-1]

    yield make_client
    for one in made:
        one.destroy_node()


@pytest.fixture(scope="session")
def colours_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that coloured light ruins and a right adapter mends."""
    sys.path.insert(0, str(ROOT / "tests" / "edge_runtime" / "adaptation"))
    from colours import make_bundle

    return make_bundle(tmp_path_factory.mktemp("colours") / "colours.bundle").path


@pytest.fixture
def robot(
    start: Callable[..., NodeProcess],
    client: Callable[..., Any],
    colours_bundle: Path,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Starts perception and adapter node, and waits until they hear each other.

    Frames come from a tiny network, whose masks agree with their mirror images by chance as much
    as by merit: that is no ground for refusal here.
    """
    from adapting_robot import AdaptingRobot

    def make(mode: str = "on", **given: Any) -> AdaptingRobot:
        options = {"rate": 100.0, "guard.agreement_loss": 0.3, "priority": "normal"}
        options |= {"mode": mode, "state_folder": tmp_path / "state", **given}
        made = client(
            start(bundle=colours_bundle, max_age_ms=0, autostart=True), kind=AdaptingRobot
        )
        made.start_adapter = lambda: start(
            "fieldsight.adapter_node", bundle=colours_bundle, **options
        )
        made.adapter = made.start_adapter()
        made.start()
        return made

    return make
