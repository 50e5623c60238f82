from __future__ import annotations

import math
import threading

import pytest

from edge_runtime.telemetry import Counters, Health, LatencyWindow


def test_percentiles_are_those_of_the_last_values() -> None:
    window = LatencyWindow(100)
    assert math.isnan(window.percentile(50))
    for value in [1e6] * 50 + list(range(1, 101)):
        window.add(value)
    assert len(window) == 100 and window.total == 150
    assert window.summary() == {
        "p50": pytest.approx(50.5),
        "p90": pytest.approx(90.1),
        "p99": pytest.approx(99.01),
    }
    with pytest.raises(ValueError, match="at least 1"):
        LatencyWindow(0)


def test_counts_from_several_threads_add_up() -> None:
    counters = Counters()
    threads = [
        threading.Thread(target=lambda: [counters.add("frames") for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters.add("dropped", 3)
    assert counters["frames"] == 2000 and counters["nothing"] == 0
    assert counters.snapshot() == {"dropped": 3, "frames": 2000}


def test_health_goes_stale_and_recovers() -> None:
    now = 0.0
    health = Health(stale_after_s=2, clock=lambda: now)
    assert health.report().level == "stale"
    health.result(5)
    report = health.report()
    assert report.level == "ok" and report.values["frames"] == 1
    assert report.values["latency_p50_ms"] == 5
    now = 3.0
    assert health.report().message == "no result for 3.0 s"
    health.error("the camera is gone")
    assert health.report().level == "error" and "camera" in health.report().message
    health.result(5)
    assert health.report().level == "ok" and health.report().values["errors"] == 1
