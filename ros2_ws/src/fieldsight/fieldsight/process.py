"""How the process of a node runs and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException

from edge_runtime import FieldsightError

NodeT = TypeVar("NodeT", bound=Any)


def run_node(make: Callable[[], NodeT], spin: Callable[[NodeT], int | None] = rclpy.spin) -> int:
    """Make a node and spin it until it is interrupted.

    Args:
        make: Makes the node, with rclpy initialised.
        spin: Runs it; may end early with an exit code.

    Returns:
        The exit code: 0 when interrupted, that of the error if the node cannot be made or run, 2
        for a parameter. A node that has ``close`` is closed in any case.
    """
    rclpy.init(args=sys.argv)
    node = None
    try:
        node = make()
        return spin(node) or 0
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except (FieldsightError, ParameterException) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    finally:
        if node is not None:
            if close := getattr(node, "close", None):
                close()
            node.destroy_node()
        rclpy.try_shutdown()
