"""A run of pretrain as a teacher and as the encoder of a student; names of trunks with levels."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import yaml
from pretrain_cases import HEADS, TINY, tiny, write_images
from safetensors.torch import load_file, save_file

from distill.cli import main
from distill.data.images import open_images
from distill.evaluation.opening import open_encoder
from distill.finetuning import load_encoder
from distill.pretraining import pretrain
from distill.teachers import Teacher, TeacherSpec
from edge_runtime.errors import InputError
from edge_runtime.student import Student

VIT = ["encoder=vit_tiny_patch16_224", "encoder_args={img_size: 32, patch_size: 8, depth: 2}"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def trained(images: Path, out: Path, *more: str) -> Path:
    settings = tiny("simclr", "epochs=1", *more)
    pretrain(open_images([str(images)]), out, settings, accelerator="cpu")
    return out


@pytest.mark.parametrize("more", [[], VIT], ids=["resnet", "transformer"])
def test_a_run_is_a_teacher(images: Path, tmp_path: Path, more: list[str]) -> None:
    run = trained(images, tmp_path / "run", *more)
    opened = open_encoder(str(run)).encoder
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (opened.mean, opened.std))
    with torch.no_grad():
        expected = opened((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)[1]
    for spec in (str(run), f"{opened.spec.name}@{run / 'encoder.safetensors'}"):
        _, pooled = Teacher(TeacherSpec.parse(spec))(pixels)
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def test_a_run_distils_into_a_student_and_starts_another_run(
    images: Path, tmp_path: Path, command_line
) -> None:
    run = trained(images, tmp_path / "run")
    words = ["--data", images, "--accelerator", "cpu"]
    small = ["size=[32,32]", "batch_size=8", "epochs=1", "views=1", "workers=0", "neck_width=16"]
    out = tmp_path / "distilled"
    code, _, said = command_line(
        main, "fieldsight-distill", "distill", *words, "--teacher", run, "--out", out, *small
    )
    assert code == 0, said
    assert (out / "student.safetensors").is_file()
    again = tmp_path / "again"
    code, shown, said = command_line(
        main, "fieldsight-distill", "pretrain", *words, "--method", "simclr", "--weights", run,
        "--out", again, *TINY, HEADS["simclr"], "epochs=1", "lr=1e-9",
    )  # fmt: skip
    assert code == 0, said
    assert "evaluate" in shown
    first, second = (open_encoder(str(r)).encoder.model.conv1.weight for r in (run, again))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["repvit_m0_9", "efficientvit_b0", "convnext_atto", "resnet18"])
def test_weights_of_a_whole_trunk_fit_a_student(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name, pretrained=False, num_classes=0).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file(
        {k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "t.safetensors"
    )
    student = Student(name, {}, 16, 16, 1).eval()
    load_encoder(student, tmp_path / "t.safetensors")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        levels = whole.forward_intermediates(image, intermediates_only=True)
        found = student.trunk.body(image)
    torch.testing.assert_close(found[-1], levels[-1], rtol=1e-3, atol=1e-4)


def test_a_pretrained_trunk_starts_a_student(images: Path, tmp_path: Path) -> None:
    run = trained(images, tmp_path / "run", "encoder=resnet10t", "encoder_args={}")
    student = Student("resnet10t", {}, 16, 16, 1)
    load_encoder(student, run)
    assert torch.equal(
        student.trunk.body.conv1[0].weight, open_encoder(str(run)).encoder.model.conv1[0].weight
    )
    with pytest.raises(InputError, match="does not fit trunk resnet18"):
        load_encoder(Student("resnet18", {}, 16, 16, 1), run)


def test_a_student_is_tuned_from_a_pretrained_trunk(
    images: Path, tiny, tmp_path: Path, command_line
) -> None:
    run = trained(images, tmp_path / "run", "encoder=resnet10t", "encoder_args={}")
    out = tmp_path / "tuned"
    code, _, said = command_line(
        main, "fieldsight-distill", "finetune", "--data", tiny.yaml, "--encoder", run, "--out", out,
        "--student", "resnet10t", "--task", "segmentation", "--accelerator", "cpu",
        "size=[32,64]", "batch_size=1", "epochs=1", "workers=0", "neck_width=16", "lr=1e-9",
    )  # fmt: skip
    assert code == 0, said
    weight = load_file(out / "student.safetensors")["trunk.body.conv1.0.weight"]
    first = open_encoder(str(run)).encoder.model.conv1[0].weight
    torch.testing.assert_close(weight, first, rtol=0, atol=1e-5)


def test_an_unfinished_run_is_neither(images: Path, tmp_path: Path) -> None:
    run = trained(images, tmp_path / "run")
    (run / "encoder.safetensors").unlink()
    with pytest.raises(InputError, match="its run is not finished"):
        TeacherSpec.parse(str(run))
    (run / "config.json").write_text(yaml.safe_dump({"settings": "none"}))
    with pytest.raises(InputError, match="not a run folder of pretrain"):
        TeacherSpec.parse(str(run))


def test_the_command_line_refuses_what_is_wrong(images: Path, tmp_path: Path, command_line) -> None:
    words = ["--data", images, "--out", tmp_path / "out", "--accelerator", "cpu"]
    for more, said in [
        (["--method", "simcrl"], "did you mean simclr"),
        (["--method", "simclr", "--encoder", "no_such_trunk", "batch_size=8"], "cannot be built"),
        (["--method", "simclr", *TINY, "--weights", tmp_path / "none"], "not found"),
        (["--method", "simclr", *TINY, "precision=16-mixed", "strategy=fsdp"], "cannot be used"),
    ]:
        code, _, error = command_line(main, "fieldsight-distill", "pretrain", *words, *more)
        assert code == 2 and said in error, error
