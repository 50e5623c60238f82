"""A frozen student says and teaches what the student does, and has less to compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edge_runtime.adaptation.frozen import Dense, freeze
from edge_runtime.adaptation.network import Outputs, run
from edge_runtime.student import Student

CLASSES = {"detection": 3, "segmentation": 5}


def trained(trunk: str) -> Student:
    """A student whose batch norms have seen images."""
    torch.manual_seed(0)
    student = Student(trunk, CLASSES).train()
    with torch.no_grad():
        for _ in range(3):
            student(torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8))
    return student.eval()


def total(found: Outputs) -> Tensor:
    assert found.segmentation is not None and found.scores and found.boxes
    maps = [found.features, found.segmentation, *found.scores, *found.boxes]
    return torch.stack([m.square().mean() for m in maps]).sum()


def norms(student: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in student.modules())


# mobilenetv3: a batch norm is an adapter point; repvit: some do not follow a convolution alone.
@pytest.mark.parametrize(
    ("trunk", "left", "dense"),
    [("tf_efficientnet_lite0", 0, 4), ("mobilenetv4_conv_small", 0, 2), ("resnet18", 0, 0),
     ("mobilenetv3_small_100", 1, 4), ("repvit_m0_9", 23, 3)],
)  # fmt: skip
@pytest.mark.parametrize("strides", [False, True])
def test_it_says_and_teaches_the_same(trunk: str, left: int, dense: int, strides: bool) -> None:
    student = trained(trunk).double()  # in which no activation is on the other side of its kink
    state = {name: value.clone() for name, value in student.state_dict().items()}
    frozen = freeze(student, strides)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    adapters = 0.5 + torch.rand(2, student.trunk.adapter_size, dtype=torch.float64)
    found = []
    for network in (student, frozen):
        given = adapters.clone().requires_grad_(True)
        loss = total(run(network, images, given))
        loss.backward()
        assert given.grad is not None and given.grad.abs().max() > 0
        found.append((loss.detach(), given.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)
    assert norms(frozen) == left < norms(student)
    assert sum(isinstance(m, Dense) for m in frozen.modules()) == (dense if strides else 0)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())


def test_what_would_say_something_else_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    student = trained("resnet18")

    class Shared(nn.Module):
        """A convolution whose output is also used without the batch norm after it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(96, 96, 1), nn.BatchNorm2d(96)
            nn.init.constant_(self.norm.bias, 3.0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x + self.norm(x)

    student.heads["segmentation"].refine = Shared().eval()
    frozen = freeze(student, strides=True)
    assert norms(frozen) == norms(student) and "resnet18" in caplog.text
    image = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(total(run(frozen, image)), total(run(student, image)))
