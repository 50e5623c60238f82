"""The code that builds plans, against the real parser and builder of TensorRT for RTX."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tensorrt_tools import custom_network

from edge_runtime.engines import building
from edge_runtime.engines.building import BuildError
from edge_runtime.manifest import TensorRTSpec


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """TensorRT for RTX in the place of `tensorrt`; told a GPU, as it cannot ask one here."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed; pip install tensorrt-rtx-cu12")
    import tensorrt_rtx as trt

    class Builder(trt.Builder):
        def create_builder_config(self) -> Any:
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM86, 0)
            return config

    monkeypatch.setattr(trt, "Builder", Builder)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    building.logger.cache_clear()
    yield trt
    building.logger.cache_clear()


def test_the_real_builder_builds_reports_and_keeps_its_timings(rtx: Any, network: bytes) -> None:
    seen: list[tuple[str, int, int]] = []
    options = TensorRTSpec(workspace_mib=64)
    plan, times = building.build_plan(
        network, options, "tiny", progress=lambda *step: seen.append(step)
    )
    assert len(plan) > 1000 and seen and all(0 <= done <= total for _, done, total in seen)
    again, _ = building.build_plan(network, options, "tiny", timing=times)
    assert len(again) > 1000


def test_the_real_parser_names_the_node(rtx: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(BuildError, match=r"'/neck/warp' \(Warp\).*\n.*no operator Warp"):
        building.build_plan(custom_network(fields), TensorRTSpec(), "custom")
    with pytest.raises(BuildError, match="MODEL_DESERIALIZE_FAILED"):
        building.build_plan(b"\xffnothing", TensorRTSpec(), "nothing")


def test_the_real_builder_can_be_stopped(rtx: Any, network: bytes) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        building.build_plan(network, TensorRTSpec(), "tiny", progress=stop)


def test_the_real_builder_takes_no_foreign_timing_cache(
    rtx: Any, network: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    plan, _ = building.build_plan(network, TensorRTSpec(), "tiny", timing=b"from elsewhere")
    assert len(plan) > 1000
