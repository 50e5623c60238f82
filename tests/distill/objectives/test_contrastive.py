"""MoCo v3 and DenseCL against their equations; what BYOL, SimSiam and Barlow Twins compare."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from joint_cases import OPTIONS, seeded_views
from objective_helpers import CONVOLUTIONAL, VIT, build
from torch import nn

from distill.encoders import Encoder, EncoderSpec
from distill.objectives.barlow import Barlow
from distill.objectives.byol import Byol
from distill.objectives.densecl import DenseCl
from distill.objectives.mocov3 import MocoV3
from distill.objectives.momentum import momentum_copy
from distill.objectives.simsiam import SimSiam
from edge_runtime.errors import InputError


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def test_mocov3_is_info_nce_between_predictions_and_momentum_keys():
    model = build(MocoV3, VIT, {**OPTIONS["mocov3"], "temperature": 0.3})
    batch = seeded_views(model)
    with torch.no_grad():
        for parameter in model.momentum_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        q = [unit(model.predictor(model.projector(model.encoder.pooled(v)))) for v in batch]
        k = [unit(model.momentum_projector(model.momentum_encoder.pooled(v))) for v in batch]
    expected = 0.0
    for query, key in [(q[0], k[1]), (q[1], k[0])]:
        for i in range(len(query)):
            logits = torch.stack([query[i] @ other for other in key]) / 0.3
            expected += 2 * 0.3 * float(logits.logsumexp(0) - logits[i]) / len(query)
    assert float(model(batch)["loss"].detach()) == pytest.approx(expected, rel=1e-4)


def test_mocov3_leaves_a_transformers_patch_embedding_as_it_is_unless_told():
    for freeze in (True, False):
        model = build(MocoV3, VIT, {**OPTIONS["mocov3"], "freeze_patch_embedding": freeze})
        model(seeded_views(model))["loss"].backward()
        patches = list(model.encoder.model.patch_embed.parameters())
        assert all((p.grad is None) == freeze for p in patches)
        assert all(p.requires_grad != freeze for p in patches)
    assert all(p.requires_grad for p in build(MocoV3, CONVOLUTIONAL).encoder.parameters())


def test_byol_is_the_distance_of_normalised_predictions_and_projections():
    model = build(Byol, CONVOLUTIONAL, OPTIONS["byol"])
    batch = seeded_views(model)
    with torch.no_grad():
        p = [unit(model.predictor(model.projector(model.encoder.pooled(v)))) for v in batch]
        t = [unit(model.momentum_projector(model.momentum_encoder.pooled(v))) for v in batch]
    expected = ((p[0] - t[1]) ** 2).sum(1).mean() + ((p[1] - t[0]) ** 2).sum(1).mean()
    torch.testing.assert_close(model(batch)["loss"].detach(), expected)


def test_simsiam_stops_the_gradient_of_targets_and_tells_a_collapse():
    model = build(SimSiam, CONVOLUTIONAL, OPTIONS["simsiam"])
    batch = seeded_views(model)
    healthy = model(batch)
    assert 0.7 < float(healthy["spread"]) < 1.3
    # Where the predictor is constant no gradient is left: targets give none.
    for parameter in model.predictor.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(model.predictor.layers[-1].bias)
    model(batch)["loss"].backward()
    assert all(p.grad.abs().max() == 0 for p in model.encoder.parameters())
    # All images alike: what is left of batch norm's output is one point.
    model.eval()
    same = [batch[0][:1].repeat(8, 1, 1, 1)] * 2
    assert float(model(same)["spread"]) < 1e-3


def test_the_predictor_of_simsiam_may_learn_faster_than_the_rest():
    model = build(SimSiam, CONVOLUTIONAL, {**OPTIONS["simsiam"], "predictor_lr": 5})
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in model.groups(0.3) for p in g["params"]}
    predictor = {id(p) for p in model.predictor.parameters()}
    for parameter in model.parameters():
        faster = 5 if id(parameter) in predictor else 1
        assert rates[id(parameter)] == (faster, 0.3 if parameter.ndim > 1 else 0.0)


def test_barlow_makes_the_correlation_of_standardised_embeddings_the_identity():
    model = build(Barlow, CONVOLUTIONAL, {**OPTIONS["barlow"], "redundancy": 0.02})
    batch = seeded_views(model)
    with torch.no_grad():
        a, b = (model.projector(model.encoder.pooled(view)) for view in batch)
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (a, b))
    correlation = a.T @ b / len(a)
    diagonal = correlation.diagonal()
    expected = ((diagonal - 1) ** 2).sum() + 0.02 * ((correlation**2).sum() - (diagonal**2).sum())
    torch.testing.assert_close(model(batch)["loss"].detach(), expected, rtol=1e-4, atol=1e-4)


def test_densecl_pairs_the_most_similar_cells_and_repels_averages_of_other_images():
    model = build(DenseCl, CONVOLUTIONAL, {**OPTIONS["densecl"], "temperature": 0.3, "dense": 0.7})
    batch = seeded_views(model)
    queue = model.dense_queue.bank.clone()
    with torch.no_grad():
        maps = model.encoder(batch[0])[0], model.momentum_encoder(batch[1])[0]
        cells, others = (m.flatten(2).transpose(1, 2) for m in maps)
        queries = unit(model.dense_projector(cells))
        keys = unit(model.momentum_dense_projector(others))
    losses = []
    for image in range(len(cells)):
        for cell, query in zip(cells[image], queries[image], strict=True):
            nearest = F.cosine_similarity(cell[None], others[image]).argmax()
            positive = query @ keys[image, nearest]
            logits = torch.stack([positive, *(query @ negative for negative in queue)]) / 0.3
            losses.append(logits.logsumexp(0) - logits[0])
    terms = model(batch)
    torch.testing.assert_close(terms["dense"].detach(), torch.stack(losses).mean())
    expected = 0.3 * terms["global"] + 0.7 * terms["dense"]
    torch.testing.assert_close(terms["loss"], expected)
    # The queue now begins with one average a image.
    torch.testing.assert_close(model.dense_queue.bank[: len(keys)], unit(keys.mean(1)))
    torch.testing.assert_close(model.dense_queue.bank[len(keys) :], queue[len(keys) :])


def test_densecl_averages_large_maps_and_refuses_maps_of_one_cell():
    model = build(DenseCl, VIT, {**OPTIONS["densecl"], "grid": 3})
    cells, _ = model._cells(model.encoder, seeded_views(model)[0])
    assert cells.shape[1] == 9
    deep = Encoder(EncoderSpec("resnet18", {"layers": [1] * 4, "channels": [8, 8, 8, 8]}))
    with pytest.raises(InputError, match=r"stride 32.*32x32.*output_stride"):
        DenseCl.views(DenseCl.Options(), (32, 32), deep)
    DenseCl.views(DenseCl.Options(), (64, 96), deep)


def test_the_memory_of_negatives_is_part_of_the_state():
    model = build(DenseCl, CONVOLUTIONAL, OPTIONS["densecl"])
    state = model.state_dict()
    for name in ("criterion.memory_bank", "dense_queue"):
        assert state[f"{name}.bank"].shape == (40, 16)
        assert f"{name}.bank_ptr" in state


def test_a_momentum_copy_drops_nothing():
    spec = EncoderSpec(VIT.name, {**VIT.arguments, "drop_rate": 0.5, "drop_path_rate": 0.5})
    encoder = Encoder(spec).train()
    image = torch.randn(2, 3, 32, 32)
    assert not torch.equal(encoder.pooled(image), encoder.pooled(image))
    copied = momentum_copy(encoder)
    assert copied.training
    assert torch.equal(copied.pooled(image), copied.pooled(image))
    torch.testing.assert_close(copied.pooled(image), encoder.eval().pooled(image))
    assert all(p.requires_grad for p in encoder.parameters())
