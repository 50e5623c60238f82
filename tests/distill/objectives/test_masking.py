"""Masks, what hides cells, and the two methods that predict hidden pixels."""

from __future__ import annotations

import pytest
import torch
from objective_helpers import CONVOLUTIONAL, VIT, build, falls, round_trip, views_of

from distill.objectives.mae import MAE
from distill.objectives.masking import (
    MaskFill,
    PixelHead,
    at_pixels,
    block_mask,
    random_mask,
    require_multiple,
)
from distill.objectives.simmim import SimMIM
from edge_runtime.errors import InputError


def several(count, grid, ratio):
    return torch.stack([random_mask(grid, ratio) for _ in range(count)])


@pytest.mark.parametrize(
    ("grid", "ratio", "hidden"), [((8, 8), 0.3, 19), ((4, 6), 0.5, 12), ((1, 1), 0.3, 1)]
)
def test_a_block_mask_hides_exactly_its_share(grid, ratio, hidden):
    torch.manual_seed(0)
    masks = [block_mask(grid, ratio) for _ in range(50)]
    assert {int(m.sum()) for m in masks} == {hidden}
    assert all(m.shape == grid for m in masks)


def test_a_block_mask_is_made_of_blocks():
    """Hidden cells touch hidden cells more often than where as many are drawn one by one."""
    torch.manual_seed(0)

    def touching(masks):
        return sum(int((m[1:] & m[:-1]).sum() + (m[:, 1:] & m[:, :-1]).sum()) for m in masks)

    blocks = [block_mask((12, 12), 0.3) for _ in range(40)]
    single = [random_mask((12, 12), 0.3) for _ in range(40)]
    assert touching(blocks) > 1.6 * touching(single)


def test_random_masks_hide_as_many_cells_in_every_image_and_not_the_same():
    masks = several(16, (4, 6), 0.75)
    assert masks.shape == (16, 4, 6)
    assert (masks.flatten(1).sum(1) == 18).all()
    assert len(masks.flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("spec", [CONVOLUTIONAL, VIT], ids=["convolutional", "transformer"])
def test_what_is_hidden_reaches_no_feature(spec):
    encoder = build(MAE if spec is VIT else SimMIM, spec).encoder.eval()
    fill = MaskFill(encoder)
    mask = several(2, (4, 4), 0.5)
    image = torch.randn(2, 3, 32, 32)
    hidden = at_pixels(mask, (32, 32))[:, None]
    other = torch.where(hidden, torch.randn_like(image), image)
    assert not torch.equal(image, other)
    assert torch.equal(fill(image, mask), fill(other, mask))
    seen = torch.where(hidden, image, image + 1)
    assert not torch.equal(fill(image, mask), fill(seen, mask))
    dense = [encoder(fill(x, mask))[0] for x in (image, other, seen)]
    assert torch.equal(dense[0], dense[1])
    assert not torch.allclose(dense[0], dense[2])


def test_the_content_of_hidden_cells_is_a_mask_token_to_a_transformer():
    encoder = build(MAE, VIT).encoder
    fill = MaskFill(encoder)
    torch.nn.init.normal_(fill.content)
    mask = several(1, (8, 8), 0.5)
    tokens = encoder.model.patch_embed(fill(torch.randn(1, 3, 32, 32), mask))
    hidden = tokens[mask]
    torch.testing.assert_close(hidden, hidden[:1].expand_as(hidden))


def test_the_pixel_head_puts_each_cell_where_it_was_seen():
    encoder = build(SimMIM, CONVOLUTIONAL).encoder
    head = PixelHead(encoder)
    dense = torch.zeros(1, encoder.dense_channels, 4, 4)
    before = head(dense)
    dense[:, :, 1, 2] = 1
    changed = (head(dense) != before).any(1)[0].nonzero()
    assert changed.min(0).values.tolist() == [8, 16]
    assert changed.max(0).values.tolist() == [15, 23]


@pytest.mark.parametrize(("cls", "spec"), [(SimMIM, CONVOLUTIONAL), (SimMIM, VIT), (MAE, VIT)])
def test_the_loss_falls_and_the_state_returns(cls, spec):
    options = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    objective = build(cls, spec, options if cls is MAE else {"mask_cell": 8})
    falls(objective, views_of(objective), to=0.85)
    round_trip(objective, views_of(objective))


def test_simmim_is_judged_by_hidden_pixels_only():
    objective = build(SimMIM, CONVOLUTIONAL, {"mask_cell": 8}).eval()
    image = torch.randn(2, 3, 32, 32)
    mask = several(2, (4, 4), 0.5)
    predicted = objective.head(objective.encoder(objective.fill(image, mask))[0])
    hidden = at_pixels(mask, (32, 32))[:, None].expand_as(image)
    expected = (predicted - image).abs()[hidden].mean()
    torch.testing.assert_close(objective([image, mask])["loss"], expected)


def test_mae_shows_the_trunk_what_is_kept_and_judges_what_is_hidden():
    objective = build(MAE, VIT, {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2})
    objective.eval()
    image = torch.randn(2, 3, 32, 32)
    order = torch.stack([torch.randperm(64) for _ in range(2)])
    keep, hidden = order[:, :16], order[:, 16:]
    mask = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, hidden, True).view(2, 8, 8)
    covered = at_pixels(mask, (32, 32))[:, None]
    other = torch.where(covered, torch.randn_like(image), image)
    seen = objective.visible(image, keep)
    assert seen.shape == (2, 16, objective.encoder.dense_channels)
    assert torch.equal(seen, objective.visible(other, keep))
    # A kept patch in another colour changes what is seen; brightness of a target changes nothing,
    # as targets are normalised patch by patch.
    assert not torch.allclose(seen, objective.visible(torch.where(covered, image, -image), keep))
    brighter = torch.where(covered, 2 * image + 1, image)
    torch.testing.assert_close(
        objective.error(image, keep, hidden), objective.error(brighter, keep, hidden)
    )
    assert objective.error(image, keep, hidden) != objective.error(other, keep, hidden)


def test_mae_with_nothing_hidden_is_the_trunk_itself_on_any_grid():
    objective = build(MAE, VIT).eval()
    image = torch.randn(2, 3, 16, 24)
    keep = torch.arange(24).expand(2, -1)
    dense = objective.encoder(image)[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(objective.visible(image, keep), dense)
    # The trunk is left as it was.
    torch.testing.assert_close(objective.encoder(image)[0].flatten(2).transpose(1, 2), dense)


def test_a_trunk_that_cannot_leave_patches_out_is_refused():
    with pytest.raises(InputError, match=r"resnet18 cannot.*vit_.*simmim"):
        build(MAE, CONVOLUTIONAL)


def test_sizes_that_do_not_fit_are_refused():
    encoder = build(SimMIM, CONVOLUTIONAL).encoder
    with pytest.raises(InputError, match=r"cells of 8 px.*size=\[32,40\]"):
        require_multiple((30, 42), encoder, "simmim")
    for cell in (5, 32, 64):
        with pytest.raises(InputError, match="mask_cell"):
            SimMIM.views(SimMIM.Options(mask_cell=cell), (32, 32), encoder)
    vit = build(SimMIM, VIT).encoder
    with pytest.raises(InputError, match="multiple of 4"):
        SimMIM.views(SimMIM.Options(mask_cell=2), (32, 32), vit)
    with pytest.raises(InputError, match="heads"):
        build(MAE, VIT, {"decoder_width": 48, "decoder_heads": 5})
