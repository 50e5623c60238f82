"""Building, caching and testing of plans, on a fake GPU for every TensorRT generation."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes.imitation import GENERATIONS
from fakes.machine import Machine
from fakes.plans import pack_plan
from onnx import helper

from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.engines import building, open_engine, plan_cache, preparing
from edge_runtime.engines.building import BuildError
from edge_runtime.engines.cuda import GpuError
from edge_runtime.engines.preparing import Prepared, prepare
from edge_runtime.errors import BundleError, InputError, RefusedError
from edge_runtime.manifest import TensorRTSpec


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(monkeypatch, tmp_path / "cache").install()
    yield machine
    machine.check_clean()


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def three(tmp_path: Path, network: bytes, canary: bytes, fields: dict[str, Any]) -> Bundle:
    """A bundle with a network of each precision, which differ in their bytes."""
    files: dict[str, bytes | Path] = {"model.onnx": network, "canary.npz": canary}
    for name in ("model.fp16.onnx", "model.int8.onnx"):
        model = onnx.load_model_from_string(network)
        model.doc_string = name
        files[name] = model.SerializeToString()
    return create_bundle(tmp_path / "three.bundle", fields, files)


def done(prepared: Prepared) -> Prepared:
    prepared.engine.close()
    return prepared


def custom_network(fields: dict[str, Any]) -> bytes:
    """The tiny contract with an operator that TensorRT has no importer for."""
    value = helper.make_tensor_value_info
    float_, uint8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=float_),
        helper.make_node("Warp", ["x"], ["y"], name="/neck/warp", domain="com.acme"),
    ]
    graph = helper.make_graph(
        nodes, "custom", [value("image", uint8, [1, 8, 8, 3])], [value("y", float_, [1, 8, 8, 3])]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


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


@pytest.mark.parametrize(
    ("precision", "takes"),
    [("auto", "int8"), ("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8")],
)
def test_each_precision_is_built_from_its_own_file(
    machine: Machine, three: Bundle, precision: str, takes: str, generation: str
) -> None:
    machine.install(generation)
    prepared = done(prepare(three, precision))
    assert prepared.engine.name == f"tensorrt-{generation}-sm87-{takes}"
    model = three.file(building.FILES[takes]).read_bytes()
    assert prepared.plan.read_bytes().endswith(model)
    config = machine.trt.configs[-1]
    assert config._flags == set(), "no precision flag: the network is strongly typed"


@pytest.mark.parametrize(
    ("absent", "takes", "because"),
    [
        ((), "int8", "the bundle has model.int8.onnx"),
        (("model.int8.onnx",), "fp16", "has model.fp16.onnx but no model.int8.onnx"),
        (("model.int8.onnx", "model.fp16.onnx"), "fp32", "no model.int8.onnx, model.fp16.onnx"),
    ],
)
def test_auto_takes_the_smallest_precision_there_is_and_says_why(
    three: Bundle,
    fields: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    absent: tuple[str, ...],
    takes: str,
    because: str,
) -> None:
    caplog.set_level(logging.INFO)
    files = {name: three.file(name) for name in three.manifest.files if name not in absent}
    bundle = create_bundle(tmp_path / "some.bundle", fields, files)
    assert building.choose_precision(bundle, "auto") == takes
    assert f"precision: {takes}, because" in caplog.text and because in caplog.text


def test_a_precision_that_the_bundle_lacks_is_refused(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    for precision in ("fp16", "int8"):
        with pytest.raises(InputError, match=rf"no model\.{precision}\.onnx.*has: fp32.*calibrate"):
            open_engine(tiny_bundle, "tensorrt", precision)
    with pytest.raises(InputError, match="'int4' is unknown"):
        open_engine(tiny_bundle, "tensorrt", "int4")


def test_the_manifests_options_reach_the_builder(
    machine: Machine, tmp_path: Path, network: bytes, fields: dict[str, Any], generation: str
) -> None:
    machine.install(generation)
    spec = {"workspace_mib": 300, "optimization_level": 5, "cuda_graph": False}
    bundle = create_bundle(
        tmp_path / "o.bundle", {**fields, "tensorrt": spec}, {"model.onnx": network}
    )
    prepared = done(prepare(bundle))
    config = machine.trt.configs[-1]
    assert config._pools == {"WORKSPACE": 300 << 20} and config.builder_optimization_level == 5
    assert prepared.self_test is None, "there is no canary in this bundle"
    assert prepared.options == TensorRTSpec.model_validate(spec)


def test_a_robots_own_options_replace_the_manifests_and_are_kept(
    machine: Machine, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    own = done(prepare(tiny_bundle, overrides={"workspace_mib": 64, "cuda_graph": False}))
    assert machine.trt.configs[-1]._pools == {"WORKSPACE": 64 << 20}
    caplog.set_level(logging.INFO)
    later = done(prepare(tiny_bundle))
    assert not later.built and later.plan == own.plan and later.options.workspace_mib == 64
    assert not later.options.cuda_graph
    assert "build options as last given to fieldsight-run build" in caplog.text
    back = done(prepare(tiny_bundle, overrides={}))
    assert back.built and back.options == TensorRTSpec() and back.plan != own.plan
    assert not done(prepare(tiny_bundle)).built and len(machine.plans()) == 2


def test_an_option_that_cannot_be_is_refused(machine: Machine, tiny_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"build option: optimization_level: .*\(found 9\)"):
        prepare(tiny_bundle, overrides={"optimization_level": 9})
    with pytest.raises(InputError, match="did you mean 'workspace_mib'"):
        prepare(tiny_bundle, overrides={"workspace": 9})
    assert prepare(tiny_bundle).engine.close() is None, "nothing wrong was kept"


def test_dla_falls_back_to_the_gpu_and_names_the_layers(
    machine: Machine, three: Bundle, caplog: pytest.LogCaptureFixture, generation: str
) -> None:
    machine.install(generation)
    machine.trt.dla_cores = 2
    machine.trt.layers_on_gpu = {"best", "mask"}
    prepared = done(prepare(three, "int8", {"dla_core": 1}))
    config = machine.trt.configs[-1]
    assert config.DLA_core == 1 and config.default_device_type.name == "DLA"
    assert config._flags == {"GPU_FALLBACK"}
    assert "these run on the GPU: best, mask" in caplog.text
    assert prepared.options.dla_core == 1


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ("int8", r"no DLA core 0: this machine has 0; build without --dla"),
        ("fp32", r"DLA computes in fp16 and int8 only"),
    ],
)
def test_a_dla_that_cannot_be_used_is_refused(
    machine: Machine, three: Bundle, precision: str, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        prepare(three, precision, {"dla_core": 0})
    assert done(prepare(three, precision)).options.dla_core is None, "what failed is not kept"


def test_the_timing_cache_lies_beside_the_plans_and_serves_the_next_build(
    machine: Machine, tiny_bundle: Bundle
) -> None:
    done(prepare(tiny_bundle))
    (timing,) = machine.cache.folder.glob("*.timing")
    assert machine.trt.configs[-1]._timing._content == b"times"
    done(prepare(tiny_bundle, force=True))
    assert machine.trt.configs[-1]._timing._content == b"timestimes", "began with the last one's"
    assert machine.cache.folder.samefile(timing.parent)


@pytest.mark.parametrize("how", ["refused by TensorRT", "not recognised", "cut short"])
def test_a_timing_cache_that_does_not_fit_is_no_obstacle(
    machine: Machine, tiny_bundle: Bundle, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    done(prepare(tiny_bundle))
    (timing,) = machine.cache.folder.glob("*.timing")
    if how == "refused by TensorRT":
        machine.trt.failures["timing"] = ""
    elif how == "not recognised":
        raw = timing.read_bytes()
        length = int.from_bytes(raw[40:44], "little")
        key = plan_cache.Header.model_validate_json(raw[44 : 44 + length]).key
        machine.cache.store(key, b"from elsewhere", "timing")
    else:
        timing.write_bytes(timing.read_bytes()[:-1])
    assert done(prepare(tiny_bundle, force=True)).built
    says = "bytes of content" if how == "cut short" else "does not take the timing cache"
    assert says in caplog.text


def test_an_operator_that_tensorrt_lacks_is_named(
    machine: Machine, tmp_path: Path, fields: dict[str, Any], generation: str
) -> None:
    machine.install(generation)
    bundle = create_bundle(tmp_path / "c.bundle", fields, {"model.onnx": custom_network(fields)})
    says = r"model\.onnx: TensorRT cannot read.*\n.*'/neck/warp' \(Warp\).*\n.*no operator Warp"
    with pytest.raises(BuildError, match=says):
        prepare(bundle)
    assert machine.plans() == []


def test_a_file_that_is_no_network_is_named(
    machine: Machine, tmp_path: Path, fields: dict[str, Any]
) -> None:
    bundle = create_bundle(tmp_path / "n.bundle", fields, {"model.onnx": b"\xffnothing"})
    with pytest.raises(BuildError, match=r"n\.bundle/model\.onnx.*\n.*MODEL_DESERIALIZE_FAILED"):
        prepare(bundle)


def test_progress_is_passed_on_and_can_stop_the_build(
    machine: Machine, tiny_bundle: Bundle, generation: str
) -> None:
    machine.install(generation)
    seen: list[tuple[str, int, int]] = []
    done(prepare(tiny_bundle, progress=lambda *step: seen.append(step)))
    assert seen[0] == ("Building Engine", 0, 3) and seen[-1] == ("Building Engine", 3, 3)
    assert ("Timing", 1, 2) in seen

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "Timing" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tiny_bundle, force=True, progress=stop)
    assert not done(prepare(tiny_bundle)).built, "the plan of before is still there"


def test_a_build_that_nobody_watches_speaks_up_now_and_then(
    machine: Machine,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = iter(range(0, 10_000, 4))  # seconds; each look at the clock takes four
    monkeypatch.setattr(preparing, "perf_counter", lambda: next(clock))
    open_engine(tiny_bundle, "tensorrt").close()
    lines = [line for line in caplog.messages if "still building the plan: " in line]
    assert 1 <= len(lines) <= 4 and "step " in lines[0]


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
    raw = plan.read_bytes()
    length = int.from_bytes(raw[40:44], "little")
    key = plan_cache.Header.model_validate_json(raw[44 : 44 + length]).key
    machine.cache.store(key, content)
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


def test_the_gpu_is_left_when_it_fails_at_once(machine: Machine, tiny_bundle: Bundle) -> None:
    machine.trt.failures["runtime"] = "CUDA initialization failure with error: 35"
    with pytest.raises(GpuError, match="update JetPack or the driver"):
        prepare(tiny_bundle)
    assert machine.cuda.retained == 0


# The same code against the real parser and builder of TensorRT for RTX, where it is installed.


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
