"""The student keeps the network contract for every supported trunk."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from distill.graph import check_parity, identity, write_onnx
from edge_runtime.errors import InputError
from edge_runtime.student import DeployedNetwork, Student

CLASSES = {"detection": 3, "segmentation": 5}
SIZE = (64, 96)


@pytest.mark.parametrize(
    "trunk", ["mobilenetv4_conv_small", "tf_efficientnet_lite0", "repvit_m0_9", "resnet18"]
)
def test_exported_graph_keeps_the_contract_and_agrees_with_torch(trunk, tmp_path):
    torch.manual_seed(0)
    student = Student(trunk, CLASSES, neck_width=32, head_width=32)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    student.eval()
    path = tmp_path / "model.onnx"
    network = write_onnx(student, SIZE, path, top_k=20)
    model = onnx.load(path)
    assert {o.domain for o in model.opset_import} <= {""}
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    size = student.trunk.adapter_size
    assert inputs == {
        "image": ("tensor(uint8)", [1, *SIZE, 3]),
        "adapter": ("tensor(float)", [size]),
    }
    outputs = {o.name: (o.type, o.shape) for o in session.get_outputs()}
    assert outputs == {
        "boxes": ("tensor(float)", [20, 4]),
        "scores": ("tensor(float)", [20]),
        "labels": ("tensor(int32)", [20]),
        "mask": ("tensor(uint8)", [SIZE[0] // 2, SIZE[1] // 2]),
        "statistics": ("tensor(float)", [size]),
    }
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(2)]
    check_parity(network, session, images)
    fused_free = DeployedNetwork(student, 20).eval()
    with torch.no_grad():
        expected = fused_free(torch.from_numpy(images[0])[None], identity(student))
    found = session.run(
        ["statistics"], {"image": images[0][None], "adapter": identity(student).numpy()}
    )
    np.testing.assert_allclose(found[0], expected[-1].numpy(), rtol=1e-2, atol=1e-3)


def test_the_adapter_acts_and_the_first_points_statistics_do_not_depend_on_it():
    student = Student("mobilenetv4_conv_small", CLASSES).eval()
    network = DeployedNetwork(student, 20)
    image = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8)
    plain = identity(student)
    changed = plain.clone()
    first = student.spec.adapter[0].channels
    changed[:first] = 2.0
    with torch.no_grad():
        before, after = network(image, plain), network(image, changed)
        bare, _ = student.trunk(image)
        neutral, _ = student.trunk(image, plain)
    for a, b in zip(bare, neutral, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(before[-1][: 2 * first], after[-1][: 2 * first])
    assert not torch.allclose(before[-1][2 * first :], after[-1][2 * first :])


def test_one_adapter_for_all_images_does_what_each_ones_own_does():
    student = Student("mobilenetv4_conv_small", CLASSES).eval()
    images = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    one = identity(student) + 0.2 * torch.randn(student.trunk.adapter_size)
    one.requires_grad_(True)
    each = one.detach().repeat(2, 1).requires_grad_(True)
    alike, own = student.trunk(images, one)[0], student.trunk(images, each)[0]
    for a, b in zip(alike, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.stack([f.square().mean() for f in alike]).sum().backward()
    torch.stack([f.square().mean() for f in own]).sum().backward()
    torch.testing.assert_close(one.grad, each.grad.sum(0), rtol=1e-3, atol=1e-5)


def test_an_exported_adapter_is_one_operation_a_point_and_agrees_with_torch(tmp_path):
    torch.manual_seed(0)
    student = Student("tf_efficientnet_lite0", CLASSES).eval()
    network = write_onnx(student, SIZE, tmp_path / "model.onnx", top_k=20)
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("BatchNormalization") == len(student.spec.adapter)
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    image = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8)
    adapter = identity(student) + 0.2 * torch.randn(student.trunk.adapter_size)
    given = {"image": image.numpy(), "adapter": adapter.numpy()}
    with torch.no_grad():
        expected = network(image, adapter)[-1].numpy()
    np.testing.assert_allclose(session.run(["statistics"], given)[0], expected, 1e-3, 1e-4)


def test_statistics_are_mean_and_variance_of_the_first_level():
    student = Student("resnet18", CLASSES).eval()
    image = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8)
    seen = []
    # Registered after the adapter point, which is neutral here.
    student.trunk.body.layer1.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        _, statistics = student.trunk(image, identity(student), statistics=True)
    sample = seen[0][0, :, ::2, ::2].flatten(1)
    torch.testing.assert_close(statistics[:64], sample.mean(1))
    torch.testing.assert_close(
        statistics[64:128], sample.var(1, correction=0), rtol=1e-3, atol=1e-5
    )


def test_a_deep_copy_has_its_own_adapter_points():
    student = Student("mobilenetv4_conv_small", CLASSES).eval()
    twin = copy.deepcopy(student)
    image = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8)
    changed = identity(student) * 0.5
    with torch.no_grad():
        for a, b in zip(
            student.trunk(image, changed)[0], twin.trunk(image, changed)[0], strict=True
        ):
            torch.testing.assert_close(a, b)


def test_unknown_trunk_and_odd_size_are_named(tmp_path):
    with pytest.raises(InputError, match="no_such_net"):
        Student("no_such_net", CLASSES)
    with pytest.raises(InputError, match="multiple of 32"):
        write_onnx(Student("resnet18", CLASSES), (65, 96), tmp_path / "m.onnx")
