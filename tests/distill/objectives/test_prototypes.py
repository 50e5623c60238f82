"""Self-distillation against its equations: temperatures, prototypes at rest, centre, Sinkhorn."""

from __future__ import annotations

import pytest
import torch
from joint_cases import OPTIONS, WITH_PROTOTYPES, seeded_views
from lightly.loss.swav_loss import sinkhorn
from objective_helpers import CONVOLUTIONAL, VIT, build

from distill.encoders import Encoder, EncoderSpec
from distill.objectives.dino import Dino
from distill.objectives.dinov2 import DinoV2
from distill.objectives.protocol import objective
from distill.objectives.prototypes import assign
from distill.objectives.schedules import cosine, linear_warmup
from distill.objectives.views import MultiCrop
from edge_runtime.errors import InputError


def make(method, spec=CONVOLUTIONAL, **more):
    return build(objective(method), spec, {**OPTIONS[method], **more})


def test_schedules_begin_and_end_where_they_are_told():
    assert [cosine(p, 0.9, 1.0) for p in (0, 0.5, 1)] == pytest.approx([0.9, 0.95, 1.0])
    assert cosine(1.2, 0.9, 1.0) == 1.0
    warm = [linear_warmup(p, 0.4, 0.04, 0.08) for p in (0, 0.1, 0.4, 1)]
    assert warm == pytest.approx([0.04, 0.05, 0.08, 0.08])
    assert linear_warmup(0, 0.0, 0.04, 0.08) == 0.08


@pytest.mark.parametrize("method", WITH_PROTOTYPES)
def test_the_teachers_temperature_warms_up(method):
    model = make(method, warmup=0.5, warmup_teacher_temperature=0.02, teacher_temperature=0.06)
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        model.begin_step(progress)
        found.append(model.temperature)
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.06])


@pytest.mark.parametrize("method", WITH_PROTOTYPES)
def test_prototypes_rest_at_first_while_all_else_moves(method):
    model = make(method, freeze_last_layer=0.2, norm_last_layer=False)
    heads = [m for n, m in model.named_children() if n in ("head", "patch_head")]
    for progress, moves in [(0.0, False), (0.19, False), (0.2, True), (0.9, True)]:
        model.zero_grad()
        model.begin_step(progress)
        model(seeded_views(model))["loss"].backward()
        for head in heads:
            for parameter in head.last_layer.parameters():
                # Zero, not absent: distributed training waits for every gradient.
                assert parameter.grad is not None
                assert bool(parameter.grad.abs().sum() > 0) == moves
            assert all(p.grad.abs().sum() > 0 for p in head.layers.parameters())


def test_dino_is_the_cross_entropy_of_other_views_with_a_centred_sharp_teacher():
    model = make("dino", VIT, student_temperature=0.2, center_momentum=0.8)
    model.criterion.center.copy_(torch.randn(1, 1, 24) * 0.1)
    center = model.criterion.center.clone()[0, 0]
    batch = seeded_views(model)
    model.begin_step(0.15)
    with torch.no_grad():
        taught = [model.teacher_head(model.teacher.pooled(v)) for v in batch[:2]]
        learnt = [model.head(model.encoder.pooled(v)) for v in batch]
    losses = []
    for i, teacher in enumerate(taught):
        target = ((teacher - center) / model.temperature).softmax(-1)
        for j, student in enumerate(learnt):
            if i != j:
                losses.append(-(target * (student / 0.2).log_softmax(-1)).sum(-1).mean())
    assert len(losses) == 2 * (len(batch) - 1)
    torch.testing.assert_close(model(batch)["loss"].detach(), torch.stack(losses).mean())
    moved = 0.8 * center + 0.2 * torch.cat(taught).mean(0)
    torch.testing.assert_close(model.criterion.center[0, 0], moved)


def test_dino_learns_from_two_global_views_alone():
    model = make("dino", local_views=0)
    batch = seeded_views(model)
    assert len(batch) == 2
    assert torch.isfinite(model(batch)["loss"])


def test_sinkhorn_shares_rows_evenly_among_prototypes():
    torch.manual_seed(0)
    logits = torch.randn(64, 8) + torch.tensor([3.0] + [0.0] * 7)
    assert (logits / 0.5).softmax(-1).mean(0)[0] > 0.5
    found = assign(logits, 0.5, iterations=50)
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found.sum(0), torch.full((8,), 8.0), rtol=1e-3, atol=1e-3)
    # Only whole rows and whole prototypes were scaled.
    scale = found.log() - logits / 0.5
    additive = scale.mean(0) + scale.mean(1, keepdim=True) - scale.mean()
    torch.testing.assert_close(scale, additive, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(assign(logits, 0.5), sinkhorn(logits, 3, 0.5))
    thousands = assign(1e4 * logits.half().float(), 0.04)
    assert thousands.isfinite().all()
    torch.testing.assert_close(assign(logits + 700, 0.5), assign(logits, 0.5), rtol=1e-3, atol=1e-4)


def test_dinov2_hides_a_share_of_one_global_view_of_each_image():
    model = make("dinov2", VIT, mask_ratio=(0.2, 0.4))
    first, second = seeded_views(model)[-2:]
    assert first.shape == second.shape == (8, 8, 8) and first.dtype == torch.bool
    counts = torch.stack([first.flatten(1).sum(1), second.flatten(1).sum(1)])
    assert (counts.min(0).values == 0).all()
    assert ((counts.max(0).values >= 12) & (counts.max(0).values <= 26)).all()
    assert 0 < (counts[0] > 0).sum() < 8
    assert len(counts.max(0).values.unique()) > 1


def test_dinov2_adds_up_the_published_terms():
    model = make("dinov2", VIT, patch_weight=0.5, koleo_weight=0.3)
    model.begin_step(0.4)
    batch = seeded_views(model)
    wide, mask = torch.cat(batch[:2]), torch.cat(batch[-2:])
    with torch.no_grad():
        dense, pooled = model.encoder(model.fill(wide, mask))
        local = [model.head(model.encoder.pooled(v)) for v in batch[2:-2]]
        taught_dense, taught_pooled = model.teacher(wide)
        targets = assign(model.teacher_head(taught_pooled), model.temperature).chunk(2)
        cells = assign(
            model.teacher_patch_head(taught_dense.permute(0, 2, 3, 1)[mask]), model.temperature
        )
    terms = {k: v.detach() for k, v in model(batch).items()}

    scores = [*model.head(pooled).detach().chunk(2), *local]
    logs = [(s / 0.1).log_softmax(-1) for s in scores]
    image = [-(targets[i] * logs[j]).sum(1).mean() for i in (0, 1) for j in range(4) if i != j]
    torch.testing.assert_close(terms["image"], torch.stack(image).mean())

    log = (model.patch_head(dense.permute(0, 2, 3, 1)[mask]).detach() / 0.1).log_softmax(-1)
    per_cell = torch.zeros(mask.shape)
    per_cell[mask] = -(cells * log).sum(1)
    masked = [per_cell[i].sum() / mask[i].sum() for i in range(16) if mask[i].any()]
    assert len(masked) == 8
    torch.testing.assert_close(terms["patch"], torch.stack(masked).mean())

    koleo = 0.0
    for view in pooled.chunk(2):
        rows = view / view.norm(dim=1, keepdim=True)
        distance = (rows[:, None] - rows).norm(dim=-1) + torch.eye(8) * 9
        koleo -= distance.min(1).values.log().mean()
    torch.testing.assert_close(terms["koleo"], koleo, rtol=1e-3, atol=1e-3)
    total = terms["image"] + 0.5 * terms["patch"] + 0.3 * terms["koleo"]
    torch.testing.assert_close(terms["loss"], total)


def test_what_is_hidden_reaches_the_teacher_but_not_the_student():
    model = make("dinov2", CONVOLUTIONAL)
    mask = seeded_views(model)[-2] | seeded_views(model)[-1]
    image = torch.randn(8, 3, 32, 32)
    hidden = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    other = torch.where(hidden, -image, image)
    student = [model.encoder(model.fill(x, mask))[0] for x in (image, other)]
    assert torch.equal(*student)
    assert not torch.allclose(model.teacher(image)[0], model.teacher(other)[0])


def test_sizes_that_dinov2_cannot_mask_are_refused():
    vit, flat = build(DinoV2, VIT, OPTIONS["dinov2"]).encoder, {"layers": [1] * 4}
    with pytest.raises(InputError, match=r"dinov2.*size=\[32,40\]"):
        DinoV2.views(DinoV2.Options(), (30, 41), vit)
    deep = Encoder(EncoderSpec("resnet18", {**flat, "channels": [8, 8, 8, 8]}))
    with pytest.raises(InputError, match=r"at least 64.*transformer"):
        DinoV2.views(DinoV2.Options(), (32, 32), deep)


def test_local_views_are_smaller_and_whole_patches_to_a_transformer():
    wide = Encoder(EncoderSpec("vit_tiny_patch16_224", {"depth": 1}))
    assert MultiCrop.local_size(0.43, (224, 288), wide) == (96, 128)
    assert MultiCrop.local_size(0.01, (224, 224), wide) == (16, 16)
    convolutional = build(Dino, CONVOLUTIONAL, OPTIONS["dino"]).encoder
    assert MultiCrop.local_size(0.43, (224, 224), convolutional) == (96, 96)
    shapes = [v.shape for v in seeded_views(make("dino", local_views=3), (32, 48))]
    assert shapes == [(8, 3, 32, 48)] * 2 + [(8, 3, 16, 24)] * 3
