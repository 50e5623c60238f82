"""Keeps a lifecycle node alive when it is asked for a transition that its state does not have."""

from __future__ import annotations

from typing import Any

from rclpy.lifecycle import LifecycleNode


def guard_transitions(node: LifecycleNode) -> None:
    """Answer impossible transition requests with `success: false`.

    rclpy before its fix of https://github.com/ros2/rclpy/issues/1209 (Jazzy's among them) lets
    the error end the node; later ones do what this does.

    Args:
        node: Whose `change_state` service to guard.
    """
    service = getattr(node, "_service_change_state", None)
    if service is None:
        return
    change_state = service.callback

    def guarded(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except Exception as error:
            node.get_logger().error(f"transition {request.transition.id} refused: {error}")
            response.success = False
            return response

    service.callback = guarded
