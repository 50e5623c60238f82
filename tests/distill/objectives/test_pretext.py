"""Pretext methods: their labels are what was done to the image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from objective_helpers import CONVOLUTIONAL, VIT, build, falls, pictures, round_trip, views_of

from distill.objectives.colorization import Colorization, chroma_bins, colour_cell, soft_bins
from distill.objectives.inpainting import Inpainting
from distill.objectives.jigsaw import Jigsaw, permutations, standardised
from distill.objectives.rotation import Rotation, four_turns
from edge_runtime.errors import InputError

JIGSAW = {"grid": 2, "hidden": 32, "width": 16, "permutations": 8}
INPAINTING = {"decoder_width": 16}


@pytest.mark.parametrize("spec", [CONVOLUTIONAL, VIT], ids=["convolutional", "transformer"])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Rotation, {}),
        (Inpainting, INPAINTING),
        (Colorization, {"width": 16}),
        (Jigsaw, JIGSAW),
    ],
    ids=["rotation", "inpainting", "colorization", "jigsaw"],
)
def test_the_loss_falls_and_the_state_returns(cls, options, spec):
    objective = build(cls, spec, options)
    batch = views_of(objective)
    falls(objective, batch, to=0.9, steps=20)
    round_trip(objective, batch)


def test_label_k_is_k_quarter_turns():
    images = pictures(3, 16)
    turned, label = four_turns(images)
    assert label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    upright = [cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE]
    for i, (image, k) in enumerate(zip(turned, label.tolist(), strict=True)):
        back = image.permute(1, 2, 0).numpy()
        back = cv2.rotate(back, upright[k - 1]) if k else back
        np.testing.assert_array_equal(back, images[i % 3].permute(1, 2, 0).numpy())
    assert not torch.equal(turned[0], turned[3])


def test_rotation_needs_square_images():
    objective = build(Rotation, CONVOLUTIONAL)
    with pytest.raises(InputError, match=r"not 32x48; give size=\[32,32\]"):
        views_of(objective, (32, 48))


def test_inpainting_hides_the_holes_and_judges_nothing_else():
    objective = build(Inpainting, CONVOLUTIONAL, INPAINTING).eval()
    image, mask = views_of(objective)
    assert (mask.flatten(1).sum(1) == 16).all()
    hole = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    predicted = objective.decoder(*objective.encoder(torch.where(hole, 0, image)))
    expected = (predicted - image).square()[hole.expand_as(image)].mean()
    torch.testing.assert_close(objective([image, mask])["loss"], expected)


def test_every_colour_has_a_bin_and_every_bin_a_colour():
    bins = chroma_bins()
    assert len(bins) == len(bins.unique(dim=0)) == 261
    assert (bins % 10 == 0).all()
    colours = np.random.default_rng(0).random((1, 5000, 3), np.float32)
    ab = torch.from_numpy(cv2.cvtColor(colours, cv2.COLOR_RGB2Lab))[0, :, 1:]
    distance, nearest = torch.cdist(ab, bins).min(1)
    assert distance.max() < 5 * 2**0.5 + 0.5
    assert len(nearest.unique()) > 200


def test_a_colour_is_its_nearest_bins():
    bins = chroma_bins()
    ab = torch.tensor([[20.0, 30.0], [24.0, 30.0], [-37.0, 41.0]])
    weight = soft_bins(ab, bins)
    torch.testing.assert_close(weight.sum(1), torch.ones(3))
    assert ((weight > 0).sum(1) == 5).all()
    assert bins[weight.argmax(1)].tolist() == [[20, 30], [20, 30], [-40, 40]]
    torch.testing.assert_close(weight[0] @ bins, ab[0], atol=1e-3, rtol=0)
    assert abs((weight[1] @ bins)[0] - 24) < 2


def test_colorization_shows_no_colour_and_predicts_that_of_each_place():
    objective = build(Colorization, CONVOLUTIONAL)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0, :, :16], image[2, :, 16:] = 200, 200  # red beside blue
    view = Colorization.views(Colorization.Options(min_scale=1.0), (32, 32), objective.encoder)
    torch.manual_seed(0)
    grey, ab = view(image)
    mean = torch.tensor(objective.encoder.mean)[:, None, None]
    std = torch.tensor(objective.encoder.std)[:, None, None]
    channels = grey * std + mean
    torch.testing.assert_close(channels[0], channels[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(channels[0], channels[2], atol=1e-4, rtol=0)
    assert colour_cell(objective.encoder) == 4 and ab.shape == (2, 8, 8)
    halves = ab.mean(1).T.split(3)
    red, blue = (
        (halves[0], halves[-1])
        if halves[0].mean() > halves[-1].mean()
        else (
            halves[-1],
            halves[0],
        )
    )
    pixel = np.array([[[200, 0, 0]], [[0, 0, 200]]], np.float32) / 255
    lab = torch.from_numpy(cv2.cvtColor(pixel, cv2.COLOR_RGB2Lab))[:, 0, 1:]
    torch.testing.assert_close(red[0], lab[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(blue[0], lab[1], atol=1e-2, rtol=0)


def test_rare_colours_count_more_and_the_average_colour_counts_one():
    objective = build(Colorization, CONVOLUTIONAL, {"width": 16, "prior_momentum": 0.5}).train()
    torch.testing.assert_close(objective.weights().std(), torch.tensor(0.0), atol=0.2, rtol=0)
    batch = views_of(objective)
    batch[1].zero_()  # everything is grey
    for _ in range(8):
        objective(batch)
    assert abs(float(objective.prior.sum()) - 1) < 1e-4
    grey = objective.bins.norm(dim=1).argmin()
    assert objective.prior.argmax() == grey
    weight = objective.weights()
    assert weight.argmin() == grey and weight[grey] < 0.5 * weight.max()


def test_permutations_are_far_apart():
    chosen = permutations(9, 50)
    assert chosen.shape == (50, 9)
    assert (np.sort(chosen, axis=1) == np.arange(9)).all()
    distance = (chosen[:, None] != chosen[None]).sum(2) + 99 * np.eye(50, dtype=int)
    drawn = np.random.default_rng(1).permuted(np.tile(np.arange(9), (50, 1)), axis=1)
    random = (drawn[:, None] != drawn[None]).sum(2) + 99 * np.eye(50, dtype=int)
    assert distance.min() >= 7 > random.min()
    assert len(permutations(4, 100)) == 24  # there are no more


def test_a_shuffle_can_be_undone_by_its_label():
    objective = build(Jigsaw, CONVOLUTIONAL, {**JIGSAW, "tile": 1.0, "grey": 0.0, "min_scale": 1.0})
    image = pictures(1, 32)[0]
    view = Jigsaw.views(objective.options, (32, 32), objective.encoder)
    torch.manual_seed(3)
    tiles, label = view(image)
    order = torch.from_numpy(permutations(4, 8)[int(label)])
    back = torch.empty_like(tiles)
    back[order] = tiles
    real = (image.float() / 255).unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4)
    torch.testing.assert_close(back, standardised(real.flatten(0, 1)))
    assert not torch.allclose(tiles, back)


def test_tiles_keep_apart_and_tell_no_brightness():
    objective = build(Jigsaw, CONVOLUTIONAL, {**JIGSAW, "tile": 0.75})
    tiles, label = views_of(objective)
    assert tiles.shape == (8, 4, 3, 12, 12) and label.max() < 8
    torch.testing.assert_close(tiles.mean((2, 3, 4)), torch.zeros(8, 4), atol=1e-4, rtol=0)
    assert len(label.unique()) > 1


def test_tiles_of_a_transformer_are_whole_patches_and_tiny_ones_are_refused():
    vit = build(Jigsaw, VIT, JIGSAW)
    assert views_of(vit)[0].shape[-2:] == (12, 12)
    with pytest.raises(InputError, match=r"cells of 3 px.*options.grid"):
        Jigsaw.views(Jigsaw.Options(grid=2), (6, 6), vit.encoder)
