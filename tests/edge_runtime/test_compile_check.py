"""TensorRT for RTX takes the networks of every default student, and says why it takes no others."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_runtime import compile_check
from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.compile_check import check_bundle, check_file
from edge_runtime.errors import InputError

TRUNKS = ["mobilenetv4_conv_small", "tf_efficientnet_lite0", "repvit_m0_9", "resnet18"]
SIZE = (128, 160)


@pytest.fixture(autouse=True)
def _tensorrt() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no wheel for this machine")


def student_network(trunk: str, path: Path) -> ModelProto:
    """The whole network contract around a trunk whose batch norms are not fresh."""
    import torch

    from distill.graph import write_onnx
    from edge_runtime.student import Student

    torch.manual_seed(0)
    classes = {"detection": 3, "segmentation": 5}
    student = Student(trunk, classes, neck_width=32, head_width=32, head_depth=1)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    write_onnx(student.eval(), SIZE, path, top_k=20)
    return onnx.load(path)


def quantised(path: Path) -> ModelProto:
    """The network in INT8, its ranges from two frames of noise."""
    from calibration.network import prepare
    from calibration.quantization import calibrate_with

    network = prepare(path)
    adapter = next(i for i in network.graph.input if i.name == "adapter")
    size = adapter.type.tensor_type.shape.dim[0].dim_value
    frames = list(np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8))
    return calibrate_with("minmax", network, frames, np.ones(size, np.float32))()


@pytest.mark.parametrize("trunk", TRUNKS)
def test_default_students_build(trunk: str, tmp_path: Path, fields: dict[str, Any]) -> None:
    from calibration.half import to_half

    network = student_network(trunk, tmp_path / "model.onnx")
    half = to_half(network)
    int8 = to_half(quantised(tmp_path / "model.onnx"))
    files: dict[str, bytes | Path] = {
        "model.onnx": tmp_path / "model.onnx",
        "model.fp16.onnx": half.SerializeToString(),
        "model.int8.onnx": int8.SerializeToString(),
        "model.int8-cpu.onnx": b"not for TensorRT, and so not looked at",
    }
    reports = check_bundle(create_bundle(tmp_path / "x.bundle", fields, files))
    assert [(r.file, r.precision) for r in reports] == [
        ("model.onnx", "fp32"),
        ("model.fp16.onnx", "fp16"),
        ("model.int8.onnx", "int8"),
    ]
    convolutions = sum(node.op_type == "Conv" for node in network.graph.node)
    for report in reports:
        assert report.ok, report.problems
        assert report.problems == [] and report.float_layers == []
        assert report.layers == sum(report.layers_by_precision.values()) > convolutions > 40
    assert "fp16" not in reports[0].layers_by_precision
    assert reports[2].layers_by_precision["int8"] > convolutions
    assert reports[1].layers_by_precision["fp16"] > reports[1].layers_by_precision["fp32"]


def write(
    path: Path,
    nodes: list[NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    shape: tuple[int, ...] = (1, 3, 8, 8),
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A network from `x` to `y` of these nodes."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", kind, shape)],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def pair(source: str, scale: str = "s", zero: str = "z") -> list[NodeProto]:
    """Quantise and dequantise `source`; the result is `<source>_dq`."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{source}_q"]),
        helper.make_node("DequantizeLinear", [f"{source}_q", scale, zero], [f"{source}_dq"]),
    ]


def test_convolutions_outside_of_quantised_pairs_are_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "w": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "v": random.normal(size=(4, 4, 3, 3)).astype(np.float32),
        "u": random.normal(size=(4, 4, 3, 3)).astype(np.float32),
    }
    nodes = [
        *pair("x"),
        *pair("w"),
        helper.make_node("Conv", ["x_dq", "w_dq"], ["a"], name="both"),
        helper.make_node("Conv", ["a", "v"], ["b"], name="neither"),
        *pair("b"),
        helper.make_node("Conv", ["b_dq", "u"], ["y"], name="input only"),
    ]
    report = check_file(write(tmp_path / "model.int8.onnx", nodes, constants), "int8")
    assert report.ok, report.problems
    assert report.float_layers == ["neither", "input only"]
    assert report.layers_by_precision["int8"] == 3 + 1  # three quantisations, one convolution


def test_an_fp32_file_in_the_place_of_fp16_is_noticed(tmp_path: Path) -> None:
    constants = {"w": np.ones((4, 3, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    report = check_file(write(tmp_path / "model.fp16.onnx", nodes, constants), "fp16")
    assert report.ok and report.float_layers == ["conv"]


ZERO_POINT = {"s": np.float32(0.1), "z": np.uint8(7)}
REFUSED = {
    "an operator that is none": (
        [helper.make_node("Frobnicate", ["x"], ["y"], name="frob")], {}, "'frob' (Frobnicate)",
    ),
    "FP16 added to FP32": (
        [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
         helper.make_node("Add", ["x", "h"], ["y"], name="sum")], {}, "'sum' (Add)",
    ),
    "a zero point": (
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quant"),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        ZERO_POINT, "'quant' (QuantizeLinear)",
    ),
    "a missing tensor": (
        [helper.make_node("Conv", ["x", "nowhere"], ["y"], name="conv")], {}, "'conv' (Conv)",
    ),
    "weights of another shape": (
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        {"w": np.ones((4, 5, 3, 3), np.float32)}, "'conv' (Conv)",
    ),
    "a circle": (
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"]),
         helper.make_node("Relu", ["b"], ["y"])], {}, "sort",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_node_and_operator(what: str, tmp_path: Path) -> None:
    nodes, constants, named = REFUSED[what]
    report = check_file(write(tmp_path / "model.onnx", nodes, constants), "fp32")
    assert not report.ok and report.problems
    assert named in report.problems[0]
    assert "Cuda" not in report.problems[0], "there is no GPU, and none is needed"


def test_uint8_within_the_network_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    path = write(tmp_path / "model.onnx", nodes, shape=(1, 8, 8, 3), kind=TensorProto.UINT8)
    report = check_file(path, "fp32")
    assert not report.ok and "'turn' (Transpose)" in report.problems[0]


def spoiled(network: bytes) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    flipped = bytearray(network)
    for place in random.integers(0, len(flipped), len(flipped) // 20):
        flipped[place] = int(random.integers(256))
    return {
        "empty": b"",
        "text": b"this is no network\n" * 50,
        "noise": random.bytes(50_000),
        "truncated": network[: len(network) // 2],
        "flipped": bytes(flipped),
    }


@pytest.mark.parametrize("how", ["empty", "text", "noise", "truncated", "flipped"])
def test_broken_files_give_a_report(how: str, tmp_path: Path, network: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(spoiled(network)[how])
    report = check_file(path, "fp32")
    assert not report.ok and report.problems and report.layers == 0
    assert report.file == "model.onnx" and report.seconds >= 0


def test_other_files_cannot_be_pulled_in(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    path = write(tmp_path / "model.onnx", nodes, {"w": np.ones((4, 3, 3, 3), np.float32)})
    for location in ("weights.bin", str(tmp_path / "weights.bin"), "/etc/passwd"):
        model = onnx.load(path)
        weights = model.graph.initializer[0]
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        bad = tmp_path / "bad.onnx"
        bad.write_bytes(model.SerializeToString())
        report = check_file(bad, "fp32")
        assert not report.ok and "initializer" in report.problems[0], location


def test_a_network_that_takes_for_ever_is_stopped(tmp_path: Path) -> None:
    links = ["x", *(f"t{i}" for i in range(20_000)), "y"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in zip(links, links[1:], strict=False)]
    report = check_file(write(tmp_path / "model.onnx", nodes), "fp32", time_limit_s=3)
    assert not report.ok
    assert report.problems == ["not built within 3 s; stopped"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed on it (SIGSEGV)"),
        ("raise OSError('libnvinfer is missing')", "libnvinfer is missing"),
    ],
)
def test_a_process_that_dies_is_explained(code: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    trouble = compile_check._trouble(done)
    assert trouble is not None and said in trouble
    assert signal.SIGSEGV.name not in said or "malformed" in trouble


def test_without_tensorrt_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(InputError, match=r"fieldsight\[compile-check\]"):
        check_bundle(tiny_bundle)


def test_unknown_capabilities_are_named(tiny_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"8\.7 is unknown .* SM86"):
        check_bundle(tiny_bundle, capability=(8, 7))
