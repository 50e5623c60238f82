"""The diagnostics that an adapter node tells itself by."""

from __future__ import annotations

import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from edge_runtime.telemetry import Counters
from fieldsight.learning import Learning
from fieldsight.state_folder import Problems

_QUIET_S = 5.0  # without a frame to learn from, that is what is said
_STARVED = 0.1  # of the processor time that the node could use; with less it learns too late
_DECISIONS = ("judge", "alarm", "rollback", "reset")
_COUNTS = ("rejected", "other_adapter", "late", "unstamped", "skipped", "errors")
# Names of events of the learner, by what people ask for.
_EVENTS = {
    "promotions": ("promoted",),
    "refusals": ("refused",),
    "recalls": ("recalled",),
    "rollbacks": ("rolled back", "alarm"),
    "returns": ("home", "elsewhere"),
}


def diagnostic_status(
    name: str,
    settings: dict[str, str],
    learning: Learning,
    counters: Counters,
    problems: Problems,
    processor_share: float | None,
) -> DiagnosticStatus:
    """One status with state, drift, the last decision, and every count.

    Args:
        name: Name of the node.
        settings: Bundle, mode and what else does not change.
        learning: What is reported about.
        counters: Of frames that were not learnt from.
        problems: With writing.
        processor_share: Of the time that the node could use, 0 to 1; None if it is not known.
    """
    status = DiagnosticStatus(name=f"{name}: adaptation", hardware_id=settings["bundle"])
    status.level, status.message = _health(learning, problems, processor_share)
    learner = learning.learner
    happened = learner.counters.snapshot()
    values: dict[str, Any] = {"state": _state(learning), **settings}
    if processor_share is not None:
        values["processor_share"] = processor_share
    values["frozen"] = learning.frozen
    values["adapter"] = learning.digest
    values["as_trained"] = learning.digest == learning.identity
    values |= _drift(learning)
    values |= {key: happened.get(key, 0) for key in ("frames", "faults")}
    values |= {
        key: sum(happened.get(event, 0) for event in events) for key, events in _EVENTS.items()
    }
    values["resumed"] = happened.get("resumed", 0)
    values["frames_kept"] = happened.get("kept frames", 0)
    values |= {key: counters[key] for key in _COUNTS}
    values["store_problems"] = problems.count + learning.guard.log.lost
    values["store_problem"] = problems.last
    values |= _decision(learning)
    status.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    return status


def _state(learning: Learning) -> str:
    """In one word: waiting, frozen, fault, adapted, shifted or normal."""
    last = learning.last
    if time.monotonic() - learning.last_frame_s > _QUIET_S or last is None:
        return "waiting"
    if learning.frozen:
        return "frozen"
    if last.fault is not None or last.drift is None:
        return "fault"
    return "adapted" if learning.learner.adapted else last.drift.state


def _health(learning: Learning, problems: Problems, share: float | None) -> tuple[bytes, str]:
    """Level and message; what matters most comes first."""
    last = learning.last
    warnings = {
        f"not stored: {problems.last}": bool(problems.last),
        "perception does not use the adapter that was given": learning.ignored,
        f"camera: {last.fault if last else ''}": last is not None and last.fault is not None,
        f"gets {share or 0:.1%} of the processor time that it could use, and learns late; leave a "
        "core to it or raise its priority": share is not None and share < _STARVED,
    }
    if learning.error:
        return DiagnosticStatus.ERROR, learning.error
    said = next((text for text, holds in warnings.items() if holds), None)
    if said is not None:
        return DiagnosticStatus.WARN, said
    return DiagnosticStatus.OK, _state(learning)


def _drift(learning: Learning) -> dict[str, Any]:
    last = learning.last
    found: dict[str, Any] = {"fault": (last.fault if last else None) or ""}
    found["drift_threshold"] = learning.learner.monitor.threshold
    if last is not None and last.drift is not None:
        found |= {"drift": last.drift.score, "drift_state": last.drift.state}
        found |= {f"drift.{point}": score for point, score in last.drift.per_point.items()}
    return found


def _decision(learning: Learning) -> dict[str, Any]:
    """The last record of the guard that is a decision, with its reasons and numbers."""
    records = [r for r in list(learning.guard.log.recent) if r["kind"] in _DECISIONS]
    if not records:
        return {"decision": "none"}
    last = records[-1]
    kind = last["kind"]
    if kind == "judge":
        kind = "promoted" if last["promote"] else "refused"
    found: dict[str, Any] = {"decision": kind, "decision.time": last["time"]}
    found["decision.reasons"] = "; ".join(last.get("reasons", []))
    return found | {f"decision.{key}": value for key, value in last.get("numbers", {}).items()}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
