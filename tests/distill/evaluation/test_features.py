"""Features of encoders over folders, shards and datasets; encoders by name, file and run."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from distill.data.class_folders import open_classified
from distill.encoders import Encoder, EncoderSpec
from distill.evaluation.features import (
    dense_features,
    drawn,
    extract,
    features_of,
    normalised,
    view_features,
)
from distill.evaluation.linear import linear_accuracy
from distill.evaluation.opening import open_encoder
from edge_runtime.errors import InputError

SIZE = (32, 32)


def test_folders_are_classes_in_the_order_of_their_names(coloured):
    source = open_classified(str(coloured))
    assert source.classes == ["blue", "green", "red"]
    assert len(source) == 60
    for index in (0, 19, 20, 45):
        label = source.label(index)
        assert source.name(index).split("/")[-2] == source.classes[label]
        assert (
            int(source.read(index).mean((0, 1)).argmax())
            == {"red": 0, "green": 1, "blue": 2}[source.classes[label]]
        )


def test_splits_are_not_classes(coloured, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(coloured, tmp_path / split)
    with pytest.raises(InputError, match="are splits .train, val.; give one of them"):
        open_classified(str(tmp_path))
    assert len(open_classified(str(tmp_path / "val"))) == 60


def test_a_flat_folder_and_a_dataset_have_no_classes(coloured, tiny):
    for spec in (str(coloured / "red"), f"{tiny.yaml}:all"):
        source = open_classified(spec)
        assert source.label(0) is None
    assert len(source) == 2


def test_the_digest_follows_content_and_class(coloured, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(coloured, copy)
    assert open_classified(str(copy)).digest() == open_classified(str(coloured)).digest()
    (copy / "red" / "00.png").rename(copy / "blue" / "99.png")
    assert open_classified(str(copy)).digest() != open_classified(str(coloured)).digest()


def test_features_are_the_encoders_on_normalised_images(coloured, encoder):
    source = open_classified(str(coloured))
    found = extract(encoder, source, (40, 48), limit=9, seed=1, progress=False)
    assert found.labelled and found.broken == []
    image = source.read(int(found.indices[4]))
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    x = (x - torch.tensor(encoder.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.std).view(
        1, 3, 1, 1
    )
    with torch.no_grad():
        expected = encoder.pooled(x)[0]
    torch.testing.assert_close(found.pooled[4], expected, atol=1e-5, rtol=1e-4)
    assert found.labels[4] == source.label(int(found.indices[4]))


def test_batches_do_not_change_features_and_training_mode_comes_back(coloured, encoder):
    source = open_classified(str(coloured))
    images = [cv2.resize(source.read(i), SIZE) for i in range(7)]
    encoder.train()
    whole, parts = features_of(encoder, images), features_of(encoder, images, batch=3)
    assert encoder.training
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


def test_a_draw_is_seeded_and_without_repeats():
    first = drawn(100, 10, seed=3)
    assert np.array_equal(first, drawn(100, 10, seed=3))
    assert not np.array_equal(first, drawn(100, 10, seed=4))
    assert len(set(first.tolist())) == 10 and (np.diff(first) > 0).all()
    assert drawn(5, None).tolist() == drawn(5, 9).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="limit is 0"):
        drawn(5, 0)


def test_pictures_that_cannot_be_decoded_are_left_out_and_named(coloured, encoder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(coloured, copy)
    whole = (copy / "green" / "03.png").read_bytes()
    (copy / "green" / "03.png").write_bytes(whole[: len(whole) // 2])
    (copy / "red" / "07.png").write_bytes(b"\x89PNG hostile")
    found = extract(encoder, open_classified(str(copy)), SIZE, progress=False)
    assert [name.rpartition("copy/")[2] for name in found.broken] == ["green/03.png", "red/07.png"]
    assert len(found.pooled) == len(found.labels) == len(found.indices) == 58
    assert found.labels.bincount().tolist() == [20, 19, 19]
    for picture in copy.rglob("*.png"):
        picture.write_bytes(b"")
    with pytest.raises(InputError, match="no image can be decoded, first: .*blue/00.png"):
        extract(encoder, open_classified(str(copy)), SIZE, progress=False)


def test_views_differ_within_an_image_and_are_the_same_again(coloured, encoder):
    source = open_classified(str(coloured))
    found = view_features(encoder, source, SIZE, [3, 30], 3, seed=5, progress=False)
    assert found.shape == (2, 3, encoder.channels)
    assert not torch.allclose(found[0, 0], found[0, 1])
    alone = view_features(encoder, source, SIZE, [30], 3, seed=5, progress=False)
    torch.testing.assert_close(alone[0], found[1], atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="2 or more"):
        view_features(encoder, source, SIZE, [3], 1, progress=False)


def test_dense_features_are_maps_on_the_encoders_grid(encoder):
    images = [np.zeros((64, 96, 3), np.uint8), np.full((64, 96, 3), 255, np.uint8)]
    maps = dense_features(encoder, images)
    assert maps.shape == (2, encoder.dense_channels, 64 // encoder.stride, 96 // encoder.stride)
    with torch.no_grad():
        expected = encoder(normalised(encoder, torch.from_numpy(images[1])[None]))[0]
    torch.testing.assert_close(maps[1:], expected)


@pytest.fixture
def run(tmp_path, encoder):
    """A folder as pretrain writes it."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(
        {k: v.contiguous() for k, v in encoder.model.state_dict().items()},
        folder / "encoder.safetensors",
    )
    settings = {
        "encoder": encoder.spec.name,
        "encoder_args": encoder.spec.arguments,
        "size": [32, 48],
        "method": "simclr",
    }
    (folder / "config.json").write_text(json.dumps({"command": "pretrain", "settings": settings}))
    return folder


def test_a_run_gives_its_own_weights_size_and_method(run, encoder):
    opened = open_encoder(str(run))
    assert (opened.size, opened.method, opened.run) == ((32, 48), "simclr", run)
    assert not opened.encoder.training
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder.pooled(x), encoder.pooled(x))


def test_the_untrained_twin_of_a_run_has_its_trunk_and_seeded_weights(run, encoder):
    twin, other = open_encoder(f"{run}@random"), open_encoder(f"{run}@random", seed=1)
    assert twin.encoder.channels == encoder.channels and twin.run is None and twin.method is None
    weights = [o.encoder.model.conv1.weight for o in (twin, other, open_encoder(f"{run}@random"))]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


def test_random_weights_do_not_touch_torchs_generator():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    open_encoder("resnet18@random")
    assert torch.rand(1) == expected


def test_a_weights_file_under_timms_names(tmp_path):
    model = timm.create_model("test_convnext", num_classes=0)
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    opened = open_encoder(f"test_convnext@{file}")
    assert opened.size == tuple(model.pretrained_cfg["input_size"][1:])
    with pytest.raises(InputError, match="does not fit encoder resnet18"):
        open_encoder(f"resnet18@{file}")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match="not a readable safetensors"):
        open_encoder(f"test_convnext@{file}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet81", "neither a run folder nor a model of timm; near it"),
        ("resnet18@nowhere.safetensors", "weights nowhere.safetensors not found"),
        ("nowhere/at/all@random", "cannot be built"),
    ],
)
def test_encoders_that_are_not_there_are_named(spec, message):
    with pytest.raises(InputError, match=message):
        open_encoder(spec)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {"size": [32, 32]}}', "\0\0"])
def test_folders_that_are_no_run_are_named(run, content):
    (run / "config.json").write_text(content)
    with pytest.raises(InputError, match="not a run folder of pretrain"):
        open_encoder(str(run))


def test_an_unfinished_run_is_named(run):
    (run / "encoder.safetensors").unlink()
    with pytest.raises(InputError, match="not finished"):
        open_encoder(str(run))


def test_cifar_shards_have_labels_that_even_random_features_follow(cifar10):
    torch.manual_seed(0)
    trunk = Encoder(EncoderSpec("test_convnext"))
    train, test = (
        open_classified(str(cifar10 / f"cifar10-{s}-0000.tar")) for s in ("train", "test")
    )
    a = extract(trunk, train, SIZE, limit=800, progress=False)
    b = extract(trunk, test, SIZE, limit=300, progress=False)
    assert a.labelled and len(a.labels.unique()) == 10
    assert linear_accuracy(a.pooled, a.labels, b.pooled, b.labels) > 0.18  # chance is 0.1
