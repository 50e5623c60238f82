"""`evaluate` on encoders, through the command line, on pictures whose class is their colour."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import tarfile

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.cli import main
from distill.data.class_folders import open_classified
from distill.encoders import Encoder, EncoderSpec
from distill.evaluation import page
from distill.evaluation.encoder_page import (
    class_names,
    dense_size,
    embed,
    encoder_page,
    principal_colours,
    read_metrics,
)
from distill.evaluation.judging import JudgeOptions, judge_encoder, spread_over_classes
from distill.evaluation.opening import OpenedEncoder, open_encoder
from distill.evaluation.per_image import read_per_image
from distill.objectives.protocol import objective
from distill.pretraining import read_options
from distill.runs import write_config
from distill.settings import PretrainSettings
from edge_runtime.errors import InputError

SLOTS = {"prototypes": 6}
QUICK = JudgeOptions(view_images=10, views=2, progress=False)


@pytest.fixture
def run(tmp_path, encoder):
    """A run as pretrain leaves it, with a curve and the weights of an earlier epoch."""
    folder = tmp_path / "run"
    (folder / "encoders").mkdir(parents=True)
    weights = {k: v.contiguous() for k, v in encoder.model.state_dict().items()}
    for name in ("encoder.safetensors", "encoders/encoder-0001.safetensors"):
        save_file(weights, folder / name)
    settings = {
        "encoder": encoder.spec.name,
        "encoder_args": encoder.spec.arguments,
        "size": [32, 32],
        "method": "simclr",
    }
    (folder / "config.json").write_text(json.dumps({"command": "pretrain", "settings": settings}))
    (folder / "metrics.csv").write_text(
        "step,epoch,train/loss,probe/knn\n10,0,5.5,\n20,0,5.1,0.3\n30,1,nan,0.35\n40,1,4.2,0.4\n"
    )
    return folder


def test_all_figures_through_the_command_line(run, coloured, tmp_path, command_line):
    json_file, report = tmp_path / "figures.json", tmp_path / "page.html"
    words = ["evaluate", run, "--data", coloured, "--views", "2", "--json", json_file]
    code, out, err = command_line(main, "fieldsight-distill", *words, "--report", report)
    assert code == 0, err
    found = json.loads(json_file.read_text())
    assert found["images"] == {"train": 48, "test": 12, "test_is": "a fifth of data", "left_out": 0}
    assert found["encoder"]["method"] == "simclr" and found["encoder"]["channels"] == 32
    assert found["labels"]["knn_top1"] > 0.9 and found["labels"]["linear_top1"] > 0.9
    assert found["labels"]["linear_error"] == pytest.approx(1 - found["labels"]["linear_top1"])
    assert 0 <= found["labels"]["overlap"] < 0.5
    quality = found["quality"]
    assert quality["collapse"] is None and 1 <= quality["rankme"] <= 32
    assert 1 <= quality["lidar"] <= quality["lidar_at_most"] == 11
    assert 0 < quality["alignment"] < 4 and quality["uniformity"] < 0
    assert "labels.overlap" in out and "next: fieldsight-distill distill --teacher" in out
    _check_page(report.read_text())
    results = read_per_image(run)
    accuracy = results.scores("accuracy").value(np.ones((1, 12)))[0]
    assert accuracy == pytest.approx(found["labels"]["linear_top1"])


def _check_page(text: str) -> None:
    for heading in ("Curves of the run", "Map of the features", "Nearest neighbours", "Dense feat"):
        assert heading in text
    assert text.count("<circle") >= 12 and text.count('class="same"') > 20
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text and "train/loss" in text


def test_a_trained_and_an_untrained_encoder_on_given_test_images(run, coloured, tmp_path):
    train, test = open_classified(str(coloured)), open_classified(str(coloured))
    found = judge_encoder(open_encoder(f"{run}@random", 1), train, test, QUICK).figures
    assert found["images"]["train"] == found["images"]["test"] == 60
    assert found["images"]["test_is"] == "given" and found["encoder"]["method"] is None


def test_an_earlier_epoch_of_a_run(run):
    assert open_encoder(f"{run}@encoders/encoder-0001.safetensors").method == "simclr"
    with pytest.raises(InputError, match="not found there or in"):
        open_encoder(f"{run}@encoders/encoder-0009.safetensors")


def test_without_classes_there_are_figures_all_the_same(run, coloured, command_line, tmp_path):
    report = tmp_path / "page.html"
    words = ["evaluate", run, "--data", coloured / "red", "--views", "2", "--report", report]
    code, out, err = command_line(main, "fieldsight-distill", *words)
    assert code == 0, err
    assert "quality.rankme" in out and "knn" not in out.partition("no classes")[0]
    assert "no classes in the data" in out and "Nearest neighbours" in report.read_text()
    code, _, err = command_line(main, "fieldsight-distill", *words, "--robustness")
    assert code == 2 and "robustness needs classes" in err


def test_masks_give_a_dense_probe(run, camvid):
    opened = dataclasses.replace(open_encoder(str(run)), size=(96, 128))
    quick = dataclasses.replace(QUICK, limit=12, frames=6, view_images=4)
    found = judge_encoder(opened, open_classified(f"{camvid}:val"), None, quick).figures
    assert "labels" not in found
    assert found["dense"]["frames"] == 6 and 0.05 < found["dense"]["linear_miou"] < 0.9


def test_too_few_images_are_named(run, tiny):
    with pytest.raises(InputError, match="give more"):
        judge_encoder(open_encoder(str(run)), open_classified(f"{tiny.yaml}:all"), None, QUICK)


def test_a_dead_encoder_is_told(run, coloured):
    opened = open_encoder(str(run))
    torch.nn.init.zeros_(opened.encoder.model.conv1.weight)
    found = judge_encoder(opened, open_classified(str(coloured)), None, QUICK)
    assert "same embedding" in found.figures["quality"]["collapse"]
    assert found.figures["labels"]["linear_top1"] < 0.5


def test_robustness_beside_a_baseline(run, coloured, tmp_path, command_line):
    json_file, dead = tmp_path / "figures.json", tmp_path / "dead"
    shutil.copytree(run, dead)
    weights = load_file(run / "encoder.safetensors")
    weights["conv1.weight"] *= 0  # a baseline that guesses
    save_file(weights, dead / "encoder.safetensors")
    code, out, err = command_line(
        main, "fieldsight-distill", "evaluate", run, "--data", coloured, "--views", "2",
        "--robustness", "--robustness-images", "3", "--baseline", dead, "--epsilon", "8",
        "--json", json_file,
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(json_file.read_text())["robustness"]
    assert len(found["error"]) == 15 and all(len(e) == 5 for e in found["error"].values())
    assert found["images"] == 3 and 0 <= found["mce"] < 1 and "mce_without" not in found
    assert found["baseline"]["name"] == str(dead) and found["baseline"]["mean_error"] > 0.3
    assert found["retained"] > 0.5
    assert found["adversarial"]["epsilon"] == pytest.approx(8 / 255)
    assert found["adversarial"]["pgd"] <= found["adversarial"]["clean"]
    assert "jpeg_compression" in out and "mce" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet81"], "neither a run folder nor a model of timm"),
        (["RUN", "--baseline", "RUN@random"], "add --robustness"),
        (["RUN", "--size", "32"], "is not HEIGHTxWIDTH"),
        (["RUN", "--accelerator", "abacus"], "accelerator 'abacus' cannot be used"),
        (["RUN", "--test", "/nowhere"], "no such file"),
        (["x.bundle", "--report", "page.html"], "is no encoder"),
    ],
)
def test_wrong_use_is_named(run, coloured, command_line, words, message):
    words = [w.replace("RUN", str(run)) for w in words]
    code, _, err = command_line(main, "fieldsight-distill", "evaluate", *words, "--data", coloured)
    assert code == 2 and message in err


def test_queries_are_spread_over_classes():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50)
    chosen = labels[spread_over_classes(labels, 9)].tolist()
    assert chosen == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(spread_over_classes(labels[:2], 9)) == 2


def test_the_map_keeps_groups_together():
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(30)
    placed = torch.from_numpy(embed(torch.eye(16)[labels] * 8 + torch.randn(90, 16)))
    centres = torch.stack([placed[labels == c].mean(0) for c in range(3)])
    assert (torch.cdist(placed, centres).argmin(1) == labels).all()


def test_principal_colours_tell_regions_apart_and_agree_between_pictures():
    torch.manual_seed(0)
    kinds = torch.randn(4, 12) * 3
    layout = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(3, 0).repeat_interleave(3, 1)
    maps = torch.stack([kinds[layout], kinds[layout.T]]).permute(0, 3, 1, 2)
    shown = principal_colours(maps + 0.01 * torch.randn_like(maps)).astype(int)
    assert shown.shape == (2, 6, 6, 3)
    assert np.abs(shown[0, 0, 0] - shown[0, 1, 1]).max() < 12  # the same kind
    assert np.abs(shown[0, 0, 5] - shown[1, 5, 0]).max() < 12  # in the other picture
    assert np.abs(shown[0, 0, 0] - shown[0, 5, 5]).max() > 60  # another kind


def test_small_trunks_get_pictures_large_enough_for_a_dense_map(encoder):
    assert dense_size(encoder, (32, 32)) == (256, 256)
    assert dense_size(encoder, (256, 320)) == (256, 320)


@pytest.mark.parametrize("content", ["", "step\n", "a,b\n1,2\n", "step,x\n1,\0\n2", "\xff\xfe"])
def test_curves_of_a_spoilt_file_are_left_out(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content, encoding="latin-1")
    assert read_metrics(tmp_path) == {}


def test_curves_skip_what_is_no_number(run):
    columns = read_metrics(run)
    assert columns["train/loss"] == ([10, 20, 40], [5.5, 5.1, 4.2])
    assert columns["probe/knn"] == ([20, 30, 40], [0.3, 0.35, 0.4])
    assert "polyline" in page.curve("loss", *columns["train/loss"])
    assert page.curve("loss", [1], [2]) == ""


def test_names_are_escaped_and_pictures_are_within_the_page():
    text = page.document("<b>", [page.facts([("<script>", "&")])])
    assert "<script>" not in text and "&lt;script&gt;" in text and "<title>&lt;b&gt;" in text
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    source = page.picture(image, title='"><script>').partition("base64,")[2].partition('"')[0]
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(source), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (96, 96, 3)
    assert len(set(page.colours(12))) == 12


def test_a_transformer_is_judged_alike(coloured):
    torch.manual_seed(0)
    spec = EncoderSpec("test_vit", {"img_size": 32, "patch_size": 8})
    opened = OpenedEncoder("vit", Encoder(spec).eval(), (32, 32))
    found = judge_encoder(opened, open_classified(str(coloured)), None, QUICK)
    assert found.figures["labels"]["linear_top1"] > 0.9


@pytest.fixture
def slot_run(tmp_path):
    """A run of slotmim with few prototypes, as pretrain leaves it, at its random start."""
    torch.manual_seed(0)
    method = objective("slotmim")
    arguments = {"img_size": 32, "patch_size": 8}
    built = method(Encoder(EncoderSpec("test_vit", arguments)), read_options(method, SLOTS))
    folder = tmp_path / "slots"
    settings = PretrainSettings(
        method="slotmim", encoder="test_vit", encoder_args=arguments, size=(32, 32), options=SLOTS
    )
    write_config(folder, "pretrain", settings, {})
    torch.save({"module": built.state_dict()}, folder / "checkpoint.pt")
    weights = {k: v.contiguous() for k, v in built.kept().model.state_dict().items()}
    save_file(weights, folder / "encoder.safetensors")
    return folder


def test_prototypes_are_shown_as_objects_and_judged_by_masks(slot_run, camvid):
    opened = open_encoder(str(slot_run))
    quick = dataclasses.replace(QUICK, limit=12, frames=4, view_images=0)
    judged = judge_encoder(opened, open_classified(f"{camvid}:val"), None, quick)
    assert 0 < judged.figures["dense"]["mean_best_overlap"] < 1
    text = encoder_page(opened, judged)
    assert "Objects by prototype" in text
    (slot_run / "checkpoint.pt").unlink()
    with pytest.raises(InputError, match="holds the prototypes"):
        encoder_page(opened, judged)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["cat", "dog"]', {0: "cat", 1: "dog"}),
        ('{"cat": 0}', {}),
        ("[1, 2]", {}),
        ("not json", {}),
        (None, {}),
    ],
)
def test_names_of_classes_beside_shards(tmp_path, coloured, content, expected):
    picture = next((coloured / "red").iterdir())
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(picture, "0.png")
    if content is not None:
        (tmp_path / "classes.json").write_text(content)
    assert class_names(open_classified(str(tmp_path / "some.tar"))) == expected
