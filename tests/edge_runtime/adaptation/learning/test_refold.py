"""New weights in an old graph are what a fresh export would have written."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from distill.graph import write_onnx
from edge_runtime.adaptation.consolidation.refold import refold
from edge_runtime.adaptation.network import load_student
from edge_runtime.bundle import Bundle
from edge_runtime.errors import RefusedError
from edge_runtime.student import Student

SIZE = (64, 96)


def stirred(student: Student, seed: int) -> Student:
    """The student with every weight and statistic changed."""
    other = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + 0.1 * noise).add_(0.01 * noise)
        for module in other.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean += 0.05
                module.running_var *= 1.2
    return other.eval()


@pytest.mark.parametrize(
    "trunk",
    [
        "tf_efficientnet_lite0",
        pytest.param("mobilenetv4_conv_small", marks=pytest.mark.slow),
        pytest.param("repvit_m0_9", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
    ],
)
def test_refolding_equals_a_fresh_export(trunk: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = stirred(Student(trunk, {"detection": 3, "segmentation": 5}, 16, 16, 1), seed=1)
    new = stirred(old, seed=2)
    for name, student in (("old", old), ("new", new)):
        write_onnx(student, SIZE, tmp_path / f"{name}.onnx", top_k=20)
    made = refold((tmp_path / "old.onnx").read_bytes(), old, new, SIZE)
    fresh = onnx.load(tmp_path / "new.onnx")
    expected = {i.name: numpy_helper.to_array(i) for i in fresh.graph.initializer}
    found = {
        i.name: numpy_helper.to_array(i) for i in onnx.load_from_string(made).graph.initializer
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    points = new.spec.adapter
    adapter = np.concatenate([np.repeat(np.float32([0.9, 0.1]), p.channels) for p in points])
    feeds = {"image": image, "adapter": adapter}
    runs = [
        ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)
        for model in (made, fresh.SerializeToString())
    ]
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_tensors_that_shared_a_name_may_part(tmp_path: Path) -> None:
    """The exporter merges equal initialisers; new weights need not be equal."""
    torch.manual_seed(0)
    old = Student("resnet18", {"detection": 3}, 16, 16, 1).eval()
    write_onnx(old, SIZE, tmp_path / "old.onnx", top_k=20)
    model = onnx.load(tmp_path / "old.onnx")
    biases = [n.input[2] for n in model.graph.node if n.op_type == "Conv" and len(n.input) > 2]
    assert len(set(biases)) < len(biases), "untrained batch norms should have merged"
    new = stirred(old, seed=3)
    write_onnx(new, SIZE, tmp_path / "new.onnx", top_k=20)
    made = refold((tmp_path / "old.onnx").read_bytes(), old, new, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    adapter = np.concatenate([np.repeat(np.float32([1, 0]), p.channels) for p in new.spec.adapter])
    feeds = {"image": image, "adapter": adapter}
    runs = [
        ort.InferenceSession(m, providers=["CPUExecutionProvider"]).run(["scores"], feeds)
        for m in (made, (tmp_path / "new.onnx").read_bytes())
    ]
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-3, atol=1e-4)


def test_a_graph_of_other_weights_is_refused(student_bundle: Bundle) -> None:
    student = load_student(student_bundle)
    other = stirred(student, seed=4)
    model = student_bundle.file("model.onnx").read_bytes()
    with pytest.raises(RefusedError, match=r"holds another .* than student\.safetensors"):
        refold(model, other, student, SIZE)


def test_a_graph_that_lost_a_weights_name_is_refused(student_bundle: Bundle) -> None:
    student = load_student(student_bundle)
    model = onnx.load(student_bundle.file("model.onnx"))
    name = next(i.name for i in model.graph.initializer if i.name.endswith("conv_stem.weight"))
    for holder in (*model.graph.initializer, *model.graph.node):
        if getattr(holder, "op_type", None) == "Conv" and holder.input[1] == name:
            holder.input[1] = "val_7"
        elif holder.name == name:
            holder.name = "val_7"
    with pytest.raises(RefusedError, match="conv_stem.weight under its name"):
        refold(model.SerializeToString(), student, student, SIZE)
