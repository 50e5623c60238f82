"""Plans in the cache: built once, proven on the canary, and made again where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.imitation import GENERATIONS
from fakes.machine import Machine
from fakes.plans import pack_plan
from tensorrt_tools import done, key_of

from edge_runtime.bundle import Bundle
from edge_runtime.engines import open_engine, plan_cache
from edge_runtime.engines.preparing import prepare
from edge_runtime.errors import BundleError, InputError, RefusedError


def test_a_plan_is_built_once_and_then_loaded(
    machine: Machine, tiny_bundle: Bundle, generation: str
) -> None:
    machine.install(generation)
    first = done(prepare(tiny_bundle))
    assert (
        first.built
        and first.plan.is_file()
        and first.self_test
        == {
            "frames": 2.0,
            "mask_agreement": 1.0,
            "boxes_found": 1.0,
        }
    )
    machine.trt.failures["build"] = "this must not be built again"
    second = done(prepare(tiny_bundle))
    assert not second.built and second.plan == first.plan and second.self_test == first.self_test


def test_the_first_process_builds_and_one_that_waited_loads(
    machine: Machine, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done(prepare(tiny_bundle))
    whole = first.plan.read_bytes()
    first.plan.unlink()
    lock = plan_cache.PlanCache.lock

    def lock_after_another(self: Any, key: Any) -> Any:
        first.plan.write_bytes(whole)  # another process finishes while this one waits
        first.plan.chmod(0o600)
        return lock(self, key)

    monkeypatch.setattr(plan_cache.PlanCache, "lock", lock_after_another)
    machine.trt.failures["build"] = "this must not be built again"
    assert not done(prepare(tiny_bundle)).built


def test_force_builds_again(machine: Machine, tiny_bundle: Bundle) -> None:
    assert done(prepare(tiny_bundle)).built and done(prepare(tiny_bundle, force=True)).built
    assert len(machine.plans()) == 1


def _differently(values: np.ndarray) -> np.ndarray:
    return (values + 1) % 3


def test_a_new_plan_that_disagrees_with_the_canary_is_not_kept(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    machine.trt.spoil["mask"] = _differently
    with pytest.raises(RefusedError, match=r"sm87-fp32 agrees .* 0\.0% of the mask"):
        prepare(tiny_bundle)
    assert machine.plans() == []


def test_a_cached_plan_that_disagrees_with_the_canary_is_set_aside(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    plan = done(prepare(tiny_bundle)).plan
    machine.trt.spoil["mask"] = _differently
    with pytest.raises(RefusedError, match=r"was not used and is now .*\.rejected; run fieldsight"):
        open_engine(tiny_bundle, "tensorrt")
    assert not plan.exists() and plan.with_suffix(".rejected").is_file()
    machine.trt.spoil.clear()
    assert done(prepare(tiny_bundle)).built


def test_values_that_are_not_finite_are_refused(machine: Machine, tiny_bundle: Bundle) -> None:
    machine.trt.spoil["statistics"] = lambda values: values * np.float32(np.nan)
    with pytest.raises(RefusedError, match="'statistics' .* is not finite"):
        prepare(tiny_bundle)


@pytest.mark.parametrize("what", ["another TensorRT", "another GPU", "cut short", "no plan"])
def test_a_cached_plan_that_tensorrt_does_not_take_is_built_again(
    machine: Machine, tiny_bundle: Bundle, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = done(prepare(tiny_bundle)).plan
    model = tiny_bundle.file("model.onnx").read_bytes()
    version = machine.trt.module.__version__
    content = {
        "another TensorRT": pack_plan(["10.2.0", [8, 7]], model),
        "another GPU": pack_plan([version, [7, 2]], model),
        "cut short": pack_plan([version, [8, 7]], model)[:-9],
        "no plan": b"nothing",
    }[what]
    machine.cache.store(key_of(plan), content)
    assert done(prepare(tiny_bundle)).built
    assert "TensorRT cannot load it" in caplog.text and "will be built again" in caplog.text
    expected = "for another GPU" if what == "another GPU" else "another TensorRT or damaged"
    assert expected in caplog.text


def test_plans_of_other_machines_and_versions_lie_side_by_side(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    for generation in GENERATIONS:
        machine.install(generation)
        assert done(prepare(tiny_bundle)).built
    machine.install("10.3", name="Orin Nano")
    assert done(prepare(tiny_bundle)).built
    machine.install("10.3", capability=(11, 0))
    assert done(prepare(tiny_bundle)).engine.name == "tensorrt-10.3-sm110-fp32"
    assert len(machine.plans()) == 5
    machine.install("10.3")  # as at first
    assert not done(prepare(tiny_bundle)).built


def test_a_model_that_changed_after_the_bundle_was_opened_is_refused(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    model = tiny_bundle.file("model.onnx")
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        open_engine(tiny_bundle, "tensorrt")
    model.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read"):
        open_engine(tiny_bundle, "tensorrt")


@pytest.mark.parametrize("kind", [".timing", ".plan", ".options"])
def test_a_cache_that_cannot_be_written_is_an_error_and_frees_the_gpu(
    machine: Machine, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.suffix == kind:
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(plan_cache, "atomic_write_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written .*No space left.*FIELDSIGHT_CACHE"):
        prepare(tiny_bundle, overrides={})
