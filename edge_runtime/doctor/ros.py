"""ROS 2: the distribution, the middleware and its profile."""

from __future__ import annotations

from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine

_PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
_SUPPORTED = ("humble", "jazzy", "kilted")


@probe("ROS 2", "distribution")
def distribution(machine: Machine) -> Answer:
    """The sourced distribution, else the installed ones."""
    if sourced := machine.environ.get("ROS_DISTRO"):
        if sourced in _SUPPORTED:
            return Answer.ok(sourced)
        return Answer.warning(sourced, f"the nodes are made for {', '.join(_SUPPORTED)}")
    installed = [setup.split("/")[3] for setup in machine.glob("/opt/ros/*/setup.bash")]
    if installed:
        remedy = f"source /opt/ros/{installed[-1]}/setup.bash"
        return Answer.warning(f"{', '.join(installed)}, not sourced", remedy)
    if machine.has_module("rclpy"):
        return Answer.ok("from Python wheels")
    return Answer.absent("needed for the ROS 2 nodes")


@probe("ROS 2", "rclpy")
def rclpy(machine: Machine) -> Answer:
    """The client library, in this Python."""
    if machine.has_module("rclpy"):
        return Answer.ok("found")
    if machine.environ.get("ROS_DISTRO"):
        remedy = "use the Python that ROS was built for, with --system-site-packages"
        return Answer.problem("absent though ROS is sourced", remedy)
    return Answer.absent("needed for the ROS 2 nodes")


@probe("ROS 2", "vision_msgs")
def vision_msgs(machine: Machine) -> Answer:
    """The messages that detections are published as."""
    if machine.has_module("vision_msgs"):
        return Answer.ok("found")
    if machine.has_module("rclpy"):
        return Answer.problem("absent", "sudo apt install ros-$ROS_DISTRO-vision-msgs")
    return Answer.absent("needed for the ROS 2 nodes")


@probe("ROS 2", "middleware")
def middleware(machine: Machine) -> Answer:
    """The RMW implementation."""
    if not (machine.has_module("rclpy") or machine.environ.get("ROS_DISTRO")):
        return Answer.absent()
    chosen = machine.environ.get("RMW_IMPLEMENTATION", "")
    return Answer.ok(chosen or "rmw_fastrtps_cpp (default)")


@probe("ROS 2", "DDS profile")
def profile(machine: Machine) -> Answer:
    """Fast DDS's profile, without which images do not fit its shared memory."""
    if not (machine.has_module("rclpy") or machine.environ.get("ROS_DISTRO")):
        return Answer.absent()
    if "fastrtps" not in machine.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"):
        return Answer.absent("of Fast DDS only")
    given = next((path for name in _PROFILES if (path := machine.environ.get(name))), None)
    if given is None:
        return Answer.warning(
            "none set; large images get lost (the launch file sets it for its own nodes)",
            f"export {_PROFILES[0]}=.../share/fieldsight/config/fastdds.xml, for camera nodes, too",
        )
    if machine.read(given) is None:
        return Answer.problem(f"{given} cannot be read", f"set {_PROFILES[0]} to a file")
    return Answer.ok(given)
