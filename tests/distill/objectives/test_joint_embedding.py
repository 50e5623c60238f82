"""What every method that compares views must hold: gradients, learning, state, bounds."""

from __future__ import annotations

import copy

import pytest
import torch
from joint_cases import OPTIONS, WITH_MOMENTUM, seeded_views
from objective_helpers import CONVOLUTIONAL, VIT, build
from pydantic import ValidationError

from distill.objectives.protocol import Objective, objective

METHODS = sorted(OPTIONS)


def make(method: str, spec=CONVOLUTIONAL, **more) -> Objective:
    return build(objective(method), spec, {**OPTIONS[method], **more})


def step(model: Objective, batch, optimiser, progress: float) -> float:
    model.begin_step(progress)
    loss = model(batch)["loss"]
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    model.end_step(progress)
    return float(loss.detach())


@pytest.mark.parametrize("spec", [CONVOLUTIONAL, VIT], ids=["convolutional", "transformer"])
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_finite_and_its_gradient_reaches_what_is_trained(method, spec):
    model = make(method, spec)
    model.begin_step(0.5)
    terms = model(seeded_views(model))
    assert all(torch.isfinite(t) for t in terms.values())
    terms["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    reached = [p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.requires_grad]
    # ResNets start with branches that are multiplied by zero.
    assert sum(reached) > 0.5 * len(reached)
    grouped = {id(p) for g in model.groups(0.1) for p in g["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_batch_falls_where_targets_stay(method):
    model = make(method)
    batch = seeded_views(model)
    optimiser = torch.optim.AdamW(model.groups(0.0), lr=3e-3)
    held = {n: b.clone() for n, b in model.named_buffers() if "bank" in n or "center" in n}
    losses = []
    for _ in range(20):
        model.load_state_dict(held, strict=False)
        # At the end of a training copies stay where they are.
        losses.append(step(model, batch, optimiser, 1.0))
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0]), losses


@pytest.mark.parametrize("method", METHODS)
def test_a_second_objective_with_the_state_goes_on_alike(method):
    model = make(method)
    batch = seeded_views(model)
    optimiser = torch.optim.SGD(model.groups(0.0), lr=0.1)
    for _ in range(3):
        step(model, batch, optimiser, 0.4)
    torch.manual_seed(7)
    other = type(model)(copy.deepcopy(model.encoder), model.options)
    other.load_state_dict(model.state_dict())
    found = []
    for one in (model, other):
        fresh = torch.optim.SGD(one.groups(0.0), lr=0.1)
        found.append([step(one, batch, fresh, 0.4) for _ in range(3)])
    assert found[0] == found[1]


@pytest.mark.parametrize("method", WITH_MOMENTUM)
def test_copies_follow_by_exactly_the_schedule_and_never_by_gradient(method):
    model = make(method)
    # 1 - (1 - 0.9) (cos(pi p) + 1) / 2
    for progress, momentum in [(0.0, 0.9), (1 / 3, 0.925), (0.5, 0.95), (1.0, 1.0)]:
        model.begin_step(progress)
        model(seeded_views(model))["loss"].backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        before = [[p.clone() for p in average.parameters()] for _, average in model.pairs()]
        model.end_step(progress)
        for (trained, average), old in zip(model.pairs(), before, strict=True):
            for t, a, o in zip(trained.parameters(), average.parameters(), old, strict=True):
                assert not a.requires_grad and a.grad is None
                torch.testing.assert_close(a, momentum * o + (1 - momentum) * t)


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_the_momentum_teacher_is_what_is_kept(method):
    model = make(method)
    assert model.kept() is model.teacher
    assert model.kept() is not model.encoder


@pytest.mark.parametrize("method", METHODS)
def test_views_depend_on_the_generators_alone(method):
    model = make(method)
    first, second = seeded_views(model), seeded_views(model)
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("barlow", {"projection": 0}),
        ("barlow", {"redundancy": -1}),
        ("byol", {"momentum": 1.0}),
        ("byol", {"momentum": -0.1}),
        ("byol", {"min_scale": 0}),
        ("byol", {"colour": -1}),
        ("densecl", {"queue": 0}),
        ("densecl", {"dense": 1.1}),
        ("densecl", {"grid": 1}),
        ("dino", {"teacher_temperature": 0}),
        ("dino", {"center_momentum": 1}),
        ("dino", {"local_size": 1.5}),
        ("dino", {"freeze_last_layer": 2}),
        ("dinov2", {"mask_ratio": [0.5, 0.1]}),
        ("dinov2", {"mask_ratio": [0.0, 0.5]}),
        ("dinov2", {"mask_ratio": [0.1, 1.0]}),
        ("dinov2", {"koleo_weight": -1}),
        ("mocov3", {"temperature": 0}),
        ("simsiam", {"bottleneck": 0}),
        ("vicreg", {"variance": -1}),
        ("vicreg", {"varianse": 1}),
    ],
)
def test_options_out_of_bounds_are_refused(method, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        objective(method).Options(**wrong)
