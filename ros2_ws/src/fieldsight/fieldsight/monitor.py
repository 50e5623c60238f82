"""What a perception node counts, and the diagnostics it tells it by."""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from edge_runtime.telemetry import Health

_LEVELS = {
    "ok": DiagnosticStatus.OK,
    "stale": DiagnosticStatus.WARN,
    "error": DiagnosticStatus.ERROR,
}
COUNTS = (
    "frames",
    "dropped_stale",
    "dropped_missed",
    "skipped",
    "errors",
    "adapter_updates",
    "adapter_rejected",
    "camera_info_rejected",
)


class MissedFrames:
    """Counts the messages that newer ones replaced before they were taken.

    The publisher's sequence numbers tell, where the middleware passes them on (Fast DDS does).
    """

    def __init__(self) -> None:
        self._last: int | None = None

    def missed(self, info: Mapping[str, int | None], publishers: int) -> int:
        """How many messages lie between this one and the one before.

        Args:
            info: rclpy's message info.
            publishers: How many publish on the topic; gaps mean nothing with several.
        """
        number = info.get("publication_sequence_number")
        last, self._last = self._last, number
        if number is None or last is None or publishers != 1 or number <= last:
            return 0
        return number - last - 1


def diagnostic_status(
    name: str,
    hardware: str,
    state: str,
    engine: str,
    adapter: str,
    publishers: int,
    health: Health,
) -> DiagnosticStatus:
    """One status with every count and the latency percentiles.

    Args:
        name: Name of the node.
        hardware: Name of the bundle.
        state: Lifecycle state; only an active node can be at fault.
        engine: Name of the engine, or "none".
        adapter: Name of the adapter in use; see `tags`.
        publishers: How many publishers of images the node has found.
        health: What was counted.
    """
    report = health.report()
    status = DiagnosticStatus(name=f"{name}: perception", hardware_id=hardware)
    status.level = _LEVELS[report.level] if state == "active" else DiagnosticStatus.OK
    status.message = report.message if state == "active" else state
    if status.level == DiagnosticStatus.WARN and not publishers:
        status.message += "; nothing publishes on the image topic"
    values: dict[str, object] = {"state": state, "backend": engine, "bundle": hardware}
    values |= {"adapter": adapter, "publishers": publishers}
    values |= dict.fromkeys(COUNTS, 0)
    values |= {
        key: round(value, 3) if isinstance(value, float) else value
        for key, value in report.values.items()
    }
    values["dropped"] = health.counters["dropped_stale"] + health.counters["dropped_missed"]
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return status
