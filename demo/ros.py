"""The ROS 2 part of the demo: a perception node and a camera, two processes talking over DDS."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

from steps import ROOT, Journal, environment, executable

PACKAGE = Path("ros2_ws/src/fieldsight")


def ros_environment() -> dict[str, str]:
    """Variables for both processes: this machine only, a domain of our own, large segments."""
    env = {
        "PYTHONPATH": str(PACKAGE),
        "ROS_DOMAIN_ID": str(random.randint(1, 100)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    profiles = sorted((ROOT / PACKAGE / "config").glob("*.xml"))
    if profiles:
        env["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(profiles[0])
    return env


def stop(node: subprocess.Popen[bytes]) -> None:
    """Ends the node as Ctrl-C would, by force only after ten seconds."""
    if node.poll() is not None:
        return
    os.killpg(node.pid, signal.SIGINT)
    try:
        node.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def run_ros(bundle: Path, data: Path, out: Path, frames: int, journal: Journal) -> None:
    """Starts the node, plays validation frames to it and counts the answers."""
    env = ros_environment()
    node_words = ["python", "-m", "fieldsight.perception_node", "--ros-args"]
    node_words += ["-p", f"bundle:={bundle}"]
    journal.start("Start the perception node (stays in the background)", node_words, env)
    log = out / "node.log"
    with log.open("wb") as sink:
        node = subprocess.Popen(
            executable(node_words),
            cwd=ROOT,
            env=environment(env),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        journal.run(
            "Publish camera frames to it and count the answers",
            *("python", "demo/camera.py", "--data", f"{data}:val", "--frames", str(frames)),
            *("--json", out / "ros.json"),
            env=env,
        )
    except SystemExit:
        print(log.read_text(errors="replace")[-3000:])
        raise
    finally:
        stop(node)
