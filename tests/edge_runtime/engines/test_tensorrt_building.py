"""Building of plans from networks and options, on a fake GPU for every TensorRT generation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
from fakes.machine import Machine
from tensorrt_tools import custom_network, done, key_of

from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.engines import building, open_engine, preparing
from edge_runtime.engines.building import BuildError
from edge_runtime.engines.preparing import prepare
from edge_runtime.errors import InputError
from edge_runtime.manifest import TensorRTSpec


@pytest.fixture
def three(tmp_path: Path, network: bytes, canary: bytes, fields: dict[str, Any]) -> Bundle:
    """A bundle with a network of each precision, which differ in their bytes."""
    files: dict[str, bytes | Path] = {"model.onnx": network, "canary.npz": canary}
    for name in ("model.fp16.onnx", "model.int8.onnx"):
        model = onnx.load_model_from_string(network)
        model.doc_string = name
        files[name] = model.SerializeToString()
    return create_bundle(tmp_path / "three.bundle", fields, files)


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
        machine.cache.store(key_of(timing), b"from elsewhere", "timing")
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
