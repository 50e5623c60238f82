#!/usr/bin/env python3
"""Is the perception node alive? Asks it over DDS; exit code 0 yes, 1 no, with the reason.

The node publishes its diagnostics once a second. Healthy is one that is active and not at fault;
one that gets no images is healthy, too, since restarting it would not bring the camera back.
"""

from __future__ import annotations

import argparse
import sys
import time

SUFFIX = ": perception"  # of the status that a perception node publishes


def judge(level: int, state: str, message: str) -> tuple[bool, str]:
    """Whether a node with these diagnostics is healthy, and why.

    Args:
        level: Of diagnostic_msgs/DiagnosticStatus: 0 ok, 1 warning, 2 error, 3 stale.
        state: Lifecycle state of the node.
        message: What the node says.
    """
    if state != "active":
        return False, f"the node is {state or 'of unknown state'}, expected active: {message}"
    return level < 2, message


def main() -> int:
    """Wait for one report of a perception node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait for a report")
    arguments = parser.parse_args()

    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray

    found: list[tuple[bool, str]] = []

    def listen(report: DiagnosticArray) -> None:
        for status in report.status:
            if status.name.endswith(SUFFIX):
                values = {value.key: value.value for value in status.values}
                level = int.from_bytes(status.level, "little")
                verdict, reason = judge(level, values.get("state", ""), status.message)
                found.append((verdict, f"{status.name}: {reason}"))

    rclpy.init(args=[])
    node = rclpy.create_node("fieldsight_healthcheck")
    node.create_subscription(DiagnosticArray, "/diagnostics", listen, 10)
    end = time.monotonic() + arguments.timeout
    while not found and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.2)
    node.destroy_node()
    rclpy.try_shutdown()
    if not found:
        print(f"no perception node reported within {arguments.timeout:g} s")
        return 1
    for _, reason in found:
        print(reason)
    return 0 if all(verdict for verdict, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
