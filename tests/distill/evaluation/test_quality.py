"""Figures without labels, where their value is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from distill.encoders import Encoder, EncoderSpec
from distill.evaluation.quality import (
    alignment,
    alpha_req,
    collapse,
    effective_rank,
    lidar,
    rankme,
    spread,
    uniformity,
)
from edge_runtime.errors import InputError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(count: int, size: int, centred: bool = True) -> torch.Tensor:
    """[count, size] with orthonormal columns, of mean zero if `centred`."""
    x = random(count, size).double()
    return torch.linalg.qr(x - x.mean(0) if centred else x)[0]


def test_rankme_is_the_exponential_of_the_spectrums_entropy():
    singular = torch.tensor([4.0, 2.0, 1.0, 1.0]).double()
    shares = singular / 8
    expected = math.exp(-float((shares * shares.log()).sum()))
    features = orthonormal(50, 4, centred=False) * singular @ orthonormal(4, 4, centred=False)
    assert rankme(features) == pytest.approx(expected, rel=1e-4)
    assert rankme(features * 1000) == pytest.approx(expected, rel=1e-4)


def test_rankme_goes_from_one_to_the_number_of_channels():
    assert rankme(orthonormal(90, 16)) == pytest.approx(16, rel=1e-4)
    assert rankme(random(90, 1) * random(1, 16, seed=1)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(8)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
def test_alpha_is_the_exponent_of_the_decay(exponent):
    eigenvalues = torch.arange(1, 65).double() ** -exponent
    features = orthonormal(300, 64) * eigenvalues.sqrt()
    assert alpha_req(features) == pytest.approx(exponent, abs=0.02)


def test_alpha_needs_a_spectrum():
    with pytest.raises(InputError, match="rank of 8 or more, found 3"):
        alpha_req(random(4, 64))


def views(images: int, count: int, size: int, noise: float) -> torch.Tensor:
    return random(images, 1, size) + noise * random(images, count, size, seed=1)


def test_lidar_counts_the_directions_in_which_images_differ():
    assert lidar(views(4000, 6, 12, 1.0)) == pytest.approx(12, rel=0.01)
    flat = views(4000, 6, 12, 1.0)
    flat[:, :, 5:] -= flat[:, :, 5:].mean(1, keepdim=True)  # there only the views differ
    assert lidar(flat) == pytest.approx(5, rel=0.01)


def test_lidar_does_not_care_about_the_basis_but_rankme_does():
    mixed = torch.linalg.qr(random(12, 12))[0] * torch.logspace(0, 2, 12)
    plain = views(1000, 6, 12, 1.0)
    assert lidar(plain @ mixed) == pytest.approx(lidar(plain), rel=0.01)
    assert rankme(plain.flatten(0, 1) @ mixed) < 0.8 * rankme(plain.flatten(0, 1))


def test_lidar_says_what_it_needs():
    with pytest.raises(InputError, match="expected .N, Q, D."):
        lidar(random(10, 8))
    with pytest.raises(InputError, match="2 views"):
        lidar(random(10, 1, 8))
    broken = views(10, 2, 4, 1.0)
    broken[3, 1, 2] = float("inf")
    with pytest.raises(InputError, match="not finite"):
        lidar(broken)


def test_alignment_is_the_squared_chord():
    angle = random(200, 1)
    first = torch.cat([angle.cos(), angle.sin()], 1) * 3
    second = torch.cat([(angle + 0.4).cos(), (angle + 0.4).sin()], 1)
    assert alignment(first, second) == pytest.approx(2 - 2 * math.cos(0.4), rel=1e-4)
    assert alignment(first, -first) == pytest.approx(4, rel=1e-6)
    assert alignment(first, first) == 0


def test_uniformity_of_the_circle():
    # The mean of exp(-2 (2 - 2 cos t)) over the circle is exp(-4) I0(4).
    angle = torch.linspace(0, 2 * math.pi, 1501)[:-1, None]
    circle = torch.cat([angle.cos(), angle.sin()], 1)
    exact = -4 + math.log(float(torch.special.i0(torch.tensor(4.0).double())))
    assert uniformity(circle) == pytest.approx(exact, abs=5e-3)
    assert uniformity(torch.ones(50, 2) * random(50, 1).abs()) == pytest.approx(0, abs=1e-6)
    large = uniformity(torch.cat([circle] * 4))  # more than are looked at: a sample of them
    assert large == pytest.approx(exact, abs=0.03)


def test_spread_goes_from_one_point_to_the_whole_sphere():
    assert spread(random(5000, 32)) == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(10, 32)) == pytest.approx(0, abs=1e-3)
    # Directions at an angle of t to their mean: the root of 1 - cos(t)^2.
    pair = torch.tensor([[math.cos(0.3), math.sin(0.3)], [math.cos(0.3), -math.sin(0.3)]])
    assert spread(pair) == pytest.approx(math.sin(0.3), rel=1e-5)


def test_the_dead_are_told_from_the_living():
    offset = 10 * torch.ones(16)
    living = random(400, 16)
    assert collapse(living) is None
    assert collapse(living + offset) is None
    assert "same embedding" in collapse(offset + 1e-3 * living)
    assert "one line" in collapse(offset + random(400, 1) * random(1, 16, seed=1))
    living[7, 3] = float("nan")
    assert collapse(living) == "1 of 400 embeddings are not finite"


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("resnet18", {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}),
        EncoderSpec("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 4}),
    ],
)
def test_an_untrained_network_is_not_dead(spec):
    torch.manual_seed(0)
    images = torch.randn(64, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        assert collapse(Encoder(spec).eval().pooled(images)) is None


def test_a_training_that_only_draws_images_together_dies_and_is_caught(encoder):
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 8, 8, generator=rng)
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimiser = torch.optim.Adam(encoder.parameters(), 3e-3)
    encoder.eval()  # batch norm would keep the batch apart
    before = collapse(encoder.pooled(images).detach())
    for _ in range(80):
        noise = 0.3 * torch.randn(2, *images.shape, generator=rng)
        first, second = (encoder.pooled(images + n) for n in noise)
        loss = (first - second).square().sum(1).mean() + (first - first.mean(0)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before is None
    assert collapse(encoder.pooled(images).detach()) is not None
