"""Learning from unlabelled images: what is labelled, what counts, and that it resumes exactly."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import distill.settings
from distill.cli import main
from distill.data.labelled import LabelledViews
from distill.semi import Consistency, WithUnlabelled, strong_photometric
from distill.settings import FinetuneSettings, SemiSettings, load_settings
from distill.tasks.mixing import cut_boxes, paste, pasted_share
from edge_runtime.datasets import open_data
from edge_runtime.errors import InputError


class Brightness(nn.Module):
    """Logits of dark and bright, per pixel; its weight says how sure it is."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(sure))

    def forward(self, image):
        bright = image.float().mean(-1) / 255 - 0.5
        return self.weight * torch.stack([-bright, bright], 1)


def consistency(sure, **settings):
    model = Brightness(sure)
    return model, Consistency(model, SemiSettings(**settings), lambda m, x: m(x))


def views():
    dark_and_bright = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    dark_and_bright[:, :, :, 4:] = 255
    return dark_and_bright


def test_only_confident_pixels_count():
    image = views()
    for sure, expected in ((50.0, 1.0), (0.1, 0.0)):
        model, semi = consistency(sure)
        loss, share = semi(model, image, 255 - image)
        assert share.item() == expected
        assert (loss.item() > 0) == (expected == 1.0)
    image[:, :, :4] = 128  # half of the pixels say nothing
    model, semi = consistency(50.0, cutmix=0)
    assert float(semi(model, image, image)[1]) == 0.5


def test_the_strong_view_learns_what_the_weak_one_says():
    image = views()
    model, semi = consistency(50.0, cutmix=0)
    right, _ = semi(model, image, image)
    wrong, _ = semi(model, image, 255 - image)
    assert right.item() < 1e-6 and wrong.item() > 20
    wrong.backward()
    assert float(model.weight.grad) > 0  # being so sure of the opposite is what is wrong
    assert all(p.grad is None for p in semi.teacher.parameters())


def test_pasted_boxes_move_image_and_pseudo_labels_together():
    image = views()
    image[1] = 255 - image[1]
    model, semi = consistency(50.0, cutmix=1.0)
    torch.manual_seed(0)
    for _ in range(5):
        loss, _ = semi(model, image, image)
        assert loss.item() < 1e-6


def test_the_teacher_is_the_moving_average():
    model, semi = consistency(1.0, decay=0.5)
    model.train()
    with torch.no_grad():
        model.weight.fill_(3.0)
    value = 1.0
    for n in range(8):
        decay = min(0.5, (1 + n) / (10 + n))
        value = decay * value + (1 - decay) * 3.0
        semi(model, views(), views())
        assert float(semi.teacher.weight) == pytest.approx(value, rel=1e-5)
    model.eval()
    before = copy.deepcopy(semi.state_dict())
    semi(model, views(), views())
    assert all(torch.equal(v, semi.state_dict()[k]) for k, v in before.items())


def test_boxes_have_the_size_they_say():
    torch.manual_seed(0)
    boxes = cut_boxes(400, 0.5)
    share = pasted_share(boxes, 64, 96)
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share.max() < 0.45 and share[share > 0].mean() == pytest.approx(0.21, abs=0.04)
    maps = torch.arange(400.0)[:, None, None, None].expand(-1, 1, 16, 16)
    pasted = paste(maps, boxes)
    assert ((pasted == maps) | (pasted == maps.roll(1, 0))).all() and (pasted != maps).any()


def test_unlabelled_views_follow_from_seed_epoch_and_index(tiny):
    data = open_data(str(tiny.yaml))
    settings = FinetuneSettings(size=(32, 32), semi=SemiSettings(ratio=3))
    items = [
        WithUnlabelled(LabelledViews([data], settings), lambda i: data.read(i).image, 2, settings)[
            (epoch, 1)
        ]
        for epoch in (4, 4, 5)
    ]
    assert items[0]["weak"].shape == items[0]["strong"].shape == (3, 32, 32, 3)
    for name in ("weak", "strong", "image", "mask"):
        assert torch.equal(items[0][name], items[1][name])
    assert not torch.equal(items[0]["weak"], items[2]["weak"])
    assert not torch.equal(items[0]["weak"], items[0]["strong"])


def test_strong_views_keep_every_pixel_in_its_place():
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30, 10:30] = 200
    for seed in range(20):
        out = strong_photometric(image, np.random.default_rng(seed)).mean(-1)
        assert out[12:28, 12:28].min() > out[:8].max()


def test_settings_are_strict():
    with pytest.raises(InputError, match="semi"):
        load_settings(FinetuneSettings, None, ["semi.treshold=0.9"])
    with pytest.raises(InputError, match="mode"):
        load_settings(FinetuneSettings, None, ["mode=linnear"])


def test_a_run_on_masks_uses_and_records_its_unlabelled_images(tiny, tmp_path, command_line):
    run = tmp_path / "run"
    code, said, wrong = command_line(
        main, "fieldsight-distill", "finetune", "--data", tiny.yaml, "--task", "segmentation",
        "--unlabelled", tiny.root / "images", "--unlabelled", tiny.yaml, "--labels", "1",
        "--student", "test_efficientnet", "--out", run, "size=[32,32]", "batch_size=2",
        "workers=0", "epochs=3", "semi.threshold=0", "--accelerator", "cpu")  # fmt: skip
    assert code == 0, said + wrong
    head, *rows = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    assert {float(r[head.index("train/confident")]) for r in rows} == {1.0}
    assert '"unlabelled": 4' in (run / "config.json").read_text()


@pytest.mark.parametrize("name", ["semi", "classification", "finetune"])
def test_packaged_recipes_are_settings(name):
    recipe = Path(distill.settings.__file__).parent / "recipes" / f"{name}.yaml"
    settings = load_settings(FinetuneSettings, recipe, ["epochs=3"])
    assert settings.epochs == 3 and settings.semi.threshold >= 0.9
