"""The TensorRT engine on a real GPU: `pytest -m gpu`, or `fieldsight-run doctor --gpu-tests`."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle import Bundle
from edge_runtime.engines import open_engine
from edge_runtime.engines.plan_cache import default_folder
from edge_runtime.engines.preparing import Prepared, prepare
from edge_runtime.engines.tensorrt import TensorRTEngine
from edge_runtime.perception import Perception
from edge_runtime.telemetry import LatencyWindow

pytestmark = pytest.mark.gpu
Feed = Callable[[int], dict[str, np.ndarray]]
SOAK_CALLS = int(os.environ.get("FIELDSIGHT_SOAK_CALLS", "5000"))
# Against FP32 on the CPU: least share of equal mask pixels, most that a sorted score may differ,
# and most that a statistic may, relative to the largest.
TOLERANCE = {"fp32": (0.99, 0.02, 0.01), "fp16": (0.98, 0.05, 0.02), "int8": (0.90, 0.2, 0.1)}


def kept(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.copy() for name, values in outputs.items()}


def equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], values) for name, values in other.items())


def check_parity(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str
) -> None:
    """Outputs agree as far as the precision allows."""
    share, score, statistic = TOLERANCE[precision]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape and found[name].dtype == values.dtype, name
        if values.dtype.kind == "f":
            assert np.isfinite(found[name]).all(), name
    if "mask" in expected:
        agreement = (found["mask"] == expected["mask"]).mean()
        assert agreement >= share, f"{agreement:.2%} of the mask pixels agree"
    if "scores" in expected:
        assert np.abs(found["scores"] - expected["scores"]).max() <= score
    if "statistics" in expected:
        scale = np.abs(expected["statistics"]).max()
        assert np.abs(found["statistics"] - expected["statistics"]).max() <= statistic * scale


def precision_of(engine: TensorRTEngine) -> str:
    return engine.name.rpartition("-")[2]


def test_it_agrees_with_onnx_runtime(engine: TensorRTEngine, bundle: Bundle, feed: Feed) -> None:
    reference = open_engine(bundle, "onnxruntime", "fp32")
    for number in range(8):
        given = feed(number)
        check_parity(engine.infer(given), reference.infer(given), precision_of(engine))
    reference.close()


def test_the_self_test_passes(prepared: Prepared, bundle: Bundle) -> None:
    if not bundle.has("canary.npz"):
        pytest.skip(f"{bundle.path.name} has no canary.npz")
    assert prepared.self_test is not None and prepared.self_test["frames"] >= 1


def test_an_adapter_takes_effect_and_can_be_taken_back(
    engine: TensorRTEngine, bundle: Bundle, feed: Feed
) -> None:
    reference = open_engine(bundle, "onnxruntime", "fp32")
    identity = feed(0)
    adapter = identity["adapter"].copy()
    adapter *= np.random.default_rng(0).uniform(0.7, 1.4, adapter.shape).astype(np.float32)
    adapter[-1] += 0.3
    adapted = {**identity, "adapter": adapter}
    before = kept(engine.infer(identity))
    during = kept(engine.infer(adapted))
    check_parity(during, reference.infer(adapted), precision_of(engine))
    assert not equal(during, before), "the adapter changes nothing"
    assert equal(kept(engine.infer(identity)), before), "the identity does not bring it back"
    reference.close()


def test_another_thread_gets_the_same(engine: TensorRTEngine, feed: Feed) -> None:
    before = kept(engine.infer(feed(1)))
    results: list[dict[str, np.ndarray]] = []
    for _ in range(4):
        thread = threading.Thread(target=lambda: results.append(kept(engine.infer(feed(1)))))
        thread.start()
        thread.join()
    assert len(results) == 4 and all(equal(result, before) for result in results)


def test_beside_torch_on_the_same_gpu(engine: TensorRTEngine, feed: Feed) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    before = kept(engine.infer(feed(1)))
    ones = torch.ones(512, 512, device="cuda")
    for _ in range(20):
        product = ones @ ones
        assert equal(engine.infer(feed(1)), before)
        assert product.sum().item() == 512.0**3
    assert torch.cuda.current_device() == 0


def test_with_and_without_a_cuda_graph_it_gives_the_same(
    prepared: Prepared, bundle: Bundle, feed: Feed
) -> None:
    precision = precision_of(prepared.engine)
    other = prepare(bundle, precision, {"cuda_graph": not prepared.options.cuda_graph})
    try:
        assert not other.built, "whether a graph is recorded is no reason to build again"
        for number in range(3):
            assert equal(other.engine.infer(feed(number)), prepared.engine.infer(feed(number)))
    finally:
        other.engine.close()
        prepare(bundle, precision, {}).engine.close()  # the robot's options are as they were


def test_a_cached_plan_gives_the_same_and_a_damaged_one_is_built_again(
    prepared: Prepared, bundle: Bundle, feed: Feed
) -> None:
    precision = precision_of(prepared.engine)
    before = kept(prepared.engine.infer(feed(2)))
    assert default_folder() in prepared.plan.parents
    again = prepare(bundle, precision)
    assert not again.built and equal(again.engine.infer(feed(2)), before)
    again.engine.close()
    whole = prepared.plan.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        prepared.plan.write_bytes(content)
        rebuilt = prepare(bundle, precision)
        assert rebuilt.built
        check_parity(rebuilt.engine.infer(feed(2)), before, precision)
        rebuilt.engine.close()


def test_latency(
    engine: TensorRTEngine, bundle: Bundle, feed: Feed, record_property: Any, capsys: Any
) -> None:
    """Prints milliseconds; with a bundle that was named, the GPU must beat the CPU's median."""
    reference = open_engine(bundle, "onnxruntime", "fp32")
    p50 = {}
    for one, calls in ((reference, 20), (engine, 300)):
        buffers = {name: one.input_buffer(name) for name in one.inputs}
        for name, values in feed(0).items():
            np.copyto(buffers[name], values)
        window = LatencyWindow(calls)
        for number in range(calls + 10):
            start = perf_counter()
            one.infer(buffers)
            if number >= 10:
                window.add((perf_counter() - start) * 1e3)
        summary = window.summary()
        p50[one.name] = summary["p50"]
        record_property(one.name, summary)
        with capsys.disabled():
            figures = "  ".join(f"{name} {value:.3f}" for name, value in summary.items())
            print(f"\n{one.name}: {figures} ms")
    reference.close()
    if os.environ.get("FIELDSIGHT_BUNDLE"):
        assert p50[engine.name] < p50[reference.name]


def _resident_kib() -> int:
    statm = Path("/proc/self/statm").read_text().split()
    return int(statm[1]) * resource.getpagesize() // 1024


def test_a_soak_leaves_memory_flat_and_results_as_they_were(
    engine: TensorRTEngine, feed: Feed
) -> None:
    """FIELDSIGHT_SOAK_CALLS sets how many calls; the adapter changes now and then."""
    device = engine._cuda
    given = [feed(number) for number in range(4)]
    for entry, scale in zip(given, (1.0, 1.1, 1.0, 0.9), strict=True):
        entry["adapter"] = entry["adapter"] * np.float32(scale)
    expected = [kept(engine.infer(entry)) for entry in given]
    for number in range(SOAK_CALLS // 10):
        engine.infer(given[number % 4])
    with device.active():
        free = device.free_mib()
    resident = _resident_kib()
    for number in range(SOAK_CALLS):
        outputs = engine.infer(given[number % 4])
        if number % 97 == 0:
            assert equal(outputs, expected[number % 4]), f"call {number} differs"
    with device.active():
        lost = free - device.free_mib()
    grown = _resident_kib() - resident
    assert lost <= (64 if device.integrated else 4), f"{lost} MiB of the GPU's memory are gone"
    assert grown <= 8 * 1024, f"the process grew by {grown} KiB"


def test_opening_and_closing_leaves_nothing_behind(prepared: Prepared, bundle: Bundle) -> None:
    device = prepared.engine._cuda
    precision = precision_of(prepared.engine)
    for _ in range(3):
        prepare(bundle, precision).engine.close()
    with device.active():
        free = device.free_mib()
    for _ in range(10):
        prepare(bundle, precision).engine.close()
    with device.active():
        lost = free - device.free_mib()
    assert lost <= (64 if device.integrated else 8), f"{lost} MiB of the GPU's memory are gone"


def test_perception_runs_on_the_gpu(bundle: Bundle) -> None:
    from edge_runtime.frames import Frame

    perception = Perception(bundle)
    assert perception.engine.name.startswith("tensorrt")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (240, 320, 3), np.uint8)
    first = perception(Frame(image, 1, "camera"))
    perception.adapter = perception.adapter * np.float32(1.2)
    perception(Frame(rng.integers(0, 256, (240, 320, 3), np.uint8), 2, "camera"))
    perception.adapter = perception.adapter / np.float32(1.2)
    again = perception(Frame(image, 3, "camera"))
    if first.segmentation is not None and again.segmentation is not None:
        assert (first.segmentation.mask == again.segmentation.mask).mean() > 0.999
    perception.close()
