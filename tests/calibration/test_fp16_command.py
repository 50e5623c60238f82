"""`fieldsight-calibrate fp16`: what it writes, what it refuses, and bad input."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest
from block_scene import draw_block
from broken_networks import drown_mask, make_overflow, set_nan
from onnx import ModelProto, TensorProto

from calibration.half import to_half
from edge_runtime.bundle import Bundle, open_bundle, update_bundle


@pytest.fixture
def command(calibrate: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Run `fieldsight-calibrate fp16`; gives exit code and what was said."""
    return partial(calibrate, "fp16")


def test_the_command_writes_a_judged_file(
    command: Any, bundle: Bundle, blocks: Path, tmp_path: Path
) -> None:
    report = tmp_path / "fp16.json"
    code, said = command(bundle.path, "--data", f"{blocks}:val", "--json", report)
    assert code == 0, said
    figures = json.loads(report.read_text())
    assert figures["accepted"] and figures["judged_by"] == "labels"
    assert figures["layers_in_float"] == []
    before, after = figures["before"], figures["after"]
    assert before["segmentation"]["miou"] > 0.7, "the student has learnt"
    assert abs(before["segmentation"]["miou"] - after["segmentation"]["miou"]) < 0.002
    assert abs(before["detection"]["map_50"] - after["detection"]["map_50"]) < 0.002
    written = open_bundle(bundle.path)
    assert written.has("model.fp16.onnx")
    record = json.loads(written.file("calibration.json").read_text())
    assert record["fp16"] == figures
    onnx.checker.check_model(onnx.load(written.file("model.fp16.onnx")), full_check=True)
    code, said = command(bundle.path, "--data", f"{blocks}:val")
    assert code == 0, "a second run replaces the file"


def test_without_labels_agreement_decides_and_sizes_may_differ(
    command: Any, bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        image = draw_block(200 + i)[0]
        size = (120 + 16 * i, 80 + 4 * i)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(image, size))
    report = tmp_path / "fp16.json"
    code, said = command(bundle.path, "--data", folder, "--json", report)
    assert code == 0, said
    figures = json.loads(report.read_text())
    assert figures["judged_by"] == "agreement" and figures["frames"] == 9
    assert figures["after"]["agreement"]["masks"] > 0.99


def spoil(bundle: Bundle, change: Callable[[ModelProto], object]) -> Bundle:
    network = onnx.load(bundle.file("model.onnx"))
    change(network)
    return update_bundle(bundle, {"model.onnx": network.SerializeToString()})


@pytest.mark.parametrize("labelled", [True, False])
def test_a_drop_beyond_the_budget_is_refused(
    command: Any, bundle: Bundle, blocks: Path, tmp_path: Path, labelled: bool
) -> None:
    spoil(bundle, drown_mask)
    before = {file.name: file.read_bytes() for file in bundle.path.iterdir()}
    report = tmp_path / "fp16.json"
    data = f"{blocks}:val" if labelled else blocks.parent / "images"
    code, said = command(bundle.path, "--data", data, "--json", report)
    assert code == 3 and "the bundle is unchanged" in said
    figures = json.loads(report.read_text())
    assert not figures["accepted"] and "points" in figures["reason"]
    assert figures["agreement"]["masks"] < 0.97
    assert {file.name: file.read_bytes() for file in bundle.path.iterdir()} == before
    code, said = command(bundle.path, "--data", data, "--budget", "100", "--json", report)
    assert code == 3 and "self-test" in json.loads(report.read_text())["reason"]


def test_overflowing_layers_are_named_in_the_report(
    command: Any, bundle: Bundle, blocks: Path, tmp_path: Path
) -> None:
    spoil(bundle, lambda network: make_overflow(network, 1e5))
    report = tmp_path / "fp16.json"
    code, said = command(bundle.path, "--data", f"{blocks}:val", "--json", report)
    assert code == 0, said
    figures = json.loads(report.read_text())
    assert 2 <= len(figures["layers_in_float"]) < 10
    assert any("trunk.body" in name for name in figures["layers_in_float"])
    assert figures["largest_value"]["value"] > 16376


def test_weights_that_are_not_finite_are_refused(
    command: Any, bundle: Bundle, blocks: Path
) -> None:
    spoil(bundle, set_nan)
    before = {file.name: file.read_bytes() for file in bundle.path.iterdir()}
    code, said = command(bundle.path, "--data", f"{blocks}:val")
    assert code == 3 and "not finite" in said
    assert {file.name: file.read_bytes() for file in bundle.path.iterdir()} == before


def test_a_bundle_that_is_fp16_already_is_named(command: Any, bundle: Bundle, blocks: Path) -> None:
    network = onnx.load(bundle.file("model.onnx"))
    update_bundle(bundle, {"model.onnx": to_half(network).SerializeToString()})
    code, said = command(bundle.path, "--data", f"{blocks}:val")
    assert code == 2 and "FP16 tensors already" in said


def point_outside(network: ModelProto) -> None:
    weights = network.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")


def loop(network: ModelProto) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    node = onnx.helper.make_node("Loop", [""], [], body=body)
    network.graph.node.insert(0, node)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"", "no node"),
        (lambda data: b"no network at all", "not an ONNX network"),
        (lambda data: data[: len(data) // 2], "not an ONNX network"),
        (lambda data: altered(data, point_outside), "other files"),
        (lambda data: altered(data, loop), "branches or loops"),
        (lambda data: altered(data, lambda n: n.graph.node.pop(20)), "FP16"),
    ],
    ids=["empty", "text", "truncated", "external", "loop", "gap"],
)
def test_a_file_that_is_no_network_is_named(
    command: Any, bundle: Bundle, blocks: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    data = change(bundle.file("model.onnx").read_bytes())
    update_bundle(bundle, {"model.onnx": data})
    code, printed = command(bundle.path, "--data", f"{blocks}:val")
    assert code == 2 and said in printed, printed


def altered(data: bytes, change: Callable[[ModelProto], object]) -> bytes:
    network = ModelProto.FromString(data)
    change(network)
    return network.SerializeToString()


def test_empty_and_absent_data_are_named(command: Any, bundle: Bundle, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, said = command(bundle.path, "--data", empty)
    assert code == 2 and "no images" in said
    code, said = command(bundle.path, "--data", tmp_path / "nowhere")
    assert code == 2 and "does not exist" in said
    shutil.rmtree(bundle.path)
    code, said = command(bundle.path, "--data", empty)
    assert code == 2


def test_without_onnx_it_says_what_to_install(
    command: Any, bundle: Bundle, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in [name for name in sys.modules if name.startswith("calibration.")]:
        if not name.startswith("calibration.cli"):
            monkeypatch.delitem(sys.modules, name)
    code, said = command(bundle.path, "--data", f"{blocks}:val")
    assert code == 2 and "package 'onnx'" in said and "fieldsight[calibrate]" in said
