"""SlotMIM: aligned views, assignments to prototypes, slots."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from objective_helpers import CONVOLUTIONAL, VIT, build, falls, round_trip, views_of

from distill.objectives.slotmim import SlotMIM, occupied, slots_of
from distill.objectives.slotmim_views import AlignedViews, aligned, region_within, shared
from distill.objectives.views import ViewOptions
from edge_runtime.errors import InputError

OPTIONS = {"prototypes": 8, "hidden": 32, "width": 16, "blur": (0.0, 0.0), "min_scale": 0.3}


def small(spec, **more):
    return build(SlotMIM, spec, {**OPTIONS, **more})


def position(side=64):
    """An image whose red is its column and whose green is its row."""
    line = torch.arange(side, dtype=torch.float) / side
    image = torch.stack(
        [line.expand(side, -1), line[:, None].expand(-1, side), torch.zeros(side, side)]
    )
    return (image * 255).to(torch.uint8)


def test_aligned_maps_show_the_same_places():
    """Views of an image that spells its own coordinates agree where they overlap."""
    encoder = small(VIT).encoder
    plain = ViewOptions(min_scale=0.3, colour=0, grey=0, blur=(0, 0), solarize=(0, 0))
    view = AlignedViews(plain, 0.3, (32, 32), encoder)
    torch.manual_seed(0)
    flips = set()
    for _ in range(12):
        first, second, own, other, *_ = view(position())
        flips.add((float(own[4]), float(other[4])))
        # Two channels that vary slowly, as features would, at the resolution of the dense map.
        maps = [F.avg_pool2d(v[None, :2], 4) for v in (first, second)]
        a, b = aligned(maps[0], own[None]), aligned(maps[1], other[None])
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        assert (a[inner] - b[inner]).abs().mean() < 0.08
        unaligned = (maps[0][inner] - maps[1][inner]).abs().mean()
        assert unaligned > 1.5 * (a[inner] - b[inner]).abs().mean() or unaligned < 0.1
    assert len(flips) == 4


def test_a_region_is_told_in_shares_of_the_view():
    box, other = (10, 20, 40, 80), (30, 60, 100, 100)
    region = shared(box, other)
    assert region == (30, 60, 20, 40)
    assert region_within(box, region, False).tolist() == [0.5, 0.5, 1, 1, 0]
    assert region_within(box, region, True).tolist() == [0, 0.5, 0.5, 1, 1]
    assert shared((0, 0, 5, 5), (5, 5, 5, 5))[2:] == (0, 0)


def test_views_of_an_image_always_share_something():
    encoder = small(VIT).encoder
    view = AlignedViews(ViewOptions(min_scale=0.02), 0.3, (32, 32), encoder)
    torch.manual_seed(0)
    for _ in range(40):
        *_, own, other, _, _ = view(position())
        assert (own[2:4] > own[:2]).all() and (other[2:4] > other[:2]).all()
        assert own[:4].min() >= -1e-6 and own[:4].max() <= 1 + 1e-6


@pytest.mark.parametrize("spec", [CONVOLUTIONAL, VIT], ids=["convolutional", "transformer"])
def test_a_student_learns_what_a_still_teacher_says_and_the_state_returns(spec):
    normed = spec is CONVOLUTIONAL
    objective = small(spec, momentum=0.99999, center_momentum=0.99999, batch_norm=normed)
    torch.nn.init.normal_(objective.grouping.prototypes)  # or they would agree from the start
    batch = views_of(objective)
    falls(objective, batch, to=0.9, steps=25)
    round_trip(objective, batch)


def test_hidden_patches_reach_no_loss_of_the_student():
    objective = small(VIT).eval()
    batch = views_of(objective)
    mask = batch[4]
    hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    other = torch.where(hidden, torch.randn_like(batch[0]), batch[0])
    grouped = [
        objective.grouping(objective.encoder(objective.fill(x, mask))[0])[1]
        for x in (batch[0], other)
    ]
    assert torch.equal(*grouped)
    assert not torch.equal(objective.assign(batch[0]), objective.assign(other))


def test_slots_are_means_of_the_patches_of_a_prototype():
    tokens = torch.randn(1, 5, 2, 3)
    cosines = torch.full((1, 4, 2, 3), -1.0)
    cosines[0, 1, 0], cosines[0, 3, 1] = 1.0, 1.0  # the first row is 1, the second is 3
    assert occupied(cosines).tolist() == [[False, True, False, True]]
    slots = slots_of(tokens, cosines, 0.05)
    assert slots.shape == (1, 4, 5)
    torch.testing.assert_close(slots[0, 1], tokens[0, :, 0].mean(1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(slots[0, 3], tokens[0, :, 1].mean(1), atol=1e-3, rtol=1e-3)


def test_slots_are_contrasted_with_those_that_exist():
    """Perfectly aligned slots give the entropy of the others; an absent slot is in no sum."""
    objective = small(VIT).eval()
    objective.predictor = torch.nn.Identity()
    tokens = torch.zeros(2, 16, 1, 2)
    for i in range(4):
        tokens.view(2, 16, 2)[i // 2, i, i % 2] = 1
    cosines = torch.full((2, 8, 1, 2), -1.0)
    cosines[:, 0, :, 0], cosines[:, 5, :, 1] = 1.0, 1.0
    loss = objective._contrast((tokens, cosines), (tokens, cosines))
    tau = objective.options.slot_temperature
    expected = torch.log(1 + 3 * torch.exp(torch.tensor(-1 / tau))) * 2 * tau
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=0)


def test_the_teacher_is_kept_and_follows_and_prototypes_wait():
    objective = small(VIT, momentum=0.9, freeze=0.5)
    batch = views_of(objective)
    before = objective.teacher.model.patch_embed.proj.weight.clone()
    with torch.no_grad():
        objective.encoder.model.patch_embed.proj.weight.add_(1)
    objective.begin_step(0.0)
    objective(batch)["loss"].backward()
    assert (objective.grouping.prototypes.grad == 0).all()
    assert all(p.grad is None for p in objective.teacher.parameters())
    objective.end_step(0.0)
    after = objective.kept().model.patch_embed.proj.weight
    torch.testing.assert_close(after, before + 0.1)
    objective.begin_step(0.6)
    objective(batch)["loss"].backward()
    assert objective.grouping.prototypes.grad.abs().sum() > 0
    assert objective.temperature == pytest.approx(0.07)


def test_a_size_without_whole_cells_is_refused():
    with pytest.raises(InputError, match=r"slotmim.*size=\[32,32\]"):
        views_of(small(CONVOLUTIONAL), (30, 32))
