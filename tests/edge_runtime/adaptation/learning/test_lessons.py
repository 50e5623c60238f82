"""Views, losses, styles and budgets: the parts of which learning on the robot is made."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edge_runtime.adaptation import losses
from edge_runtime.adaptation.consolidation.budget import Budget
from edge_runtime.adaptation.consolidation.checkpoint import Spent
from edge_runtime.adaptation.consolidation.lessons import paste
from edge_runtime.adaptation.consolidation.teacher import ClassThresholds, sharpened
from edge_runtime.adaptation.looks import measure
from edge_runtime.adaptation.network import Outputs, load_student, run
from edge_runtime.adaptation.power import watts
from edge_runtime.adaptation.rehearsal import Lesson
from edge_runtime.adaptation.views import View, whole
from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.doctor.machine import Machine
from edge_runtime.errors import BundleError
from edge_runtime.prediction import open_frames

SIZE = (64, 96)


def outputs(seed: int = 0, size: tuple[int, int] = SIZE) -> Outputs:
    """Random outputs of a batch of one, heads as probabilities."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size

    def maps(channels: int, stride: int) -> torch.Tensor:
        return torch.rand(1, channels, height // stride, width // stride, generator=generator)

    return Outputs(
        maps(4, 8),
        maps(3, 4).softmax(1),
        [maps(2, s) for s in (8, 16, 32)],
        [maps(4, s) + 0.1 for s in (8, 16, 32)],
    )


def test_a_view_cuts_image_and_maps_alike() -> None:
    view = View(top=1, left=1, height=1, width=2, mirrored=True)
    image = np.arange(64 * 96 * 3).reshape(64, 96, 3)
    assert (view.of_image(image) == image[32:64, 32:96][:, ::-1]).all()
    cells = torch.arange(8 * 12).reshape(1, 1, 8, 12)
    assert (view.of_map(cells, 8) == cells[..., 4:8, 4:12].flip(-1)).all()


def test_mirroring_twice_changes_nothing_and_once_swaps_left_and_right() -> None:
    told = outputs()
    mirror = whole(SIZE, mirrored=True)
    once, twice = mirror.of_outputs(told), mirror.of_outputs(mirror.of_outputs(told))
    assert told.boxes and once.boxes and twice.boxes
    for a, b in zip(told.boxes, twice.boxes, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(once.boxes[0][0, 0], told.boxes[0][0, 2].flip(-1))
    torch.testing.assert_close(once.boxes[0][0, 1], told.boxes[0][0, 1].flip(-1))


def test_maps_of_the_heads_decode_to_the_heads_boxes(student_bundle: Bundle) -> None:
    student = load_student(student_bundle)
    image = torch.randint(0, 256, (1, *SIZE, 3)).float()
    with torch.no_grad():
        found = run(student, image)
        logits, boxes, points = student.heads["detection"](student.pyramid(image)[1])
    assert found.scores and found.boxes
    sides = torch.cat([b.flatten(2) for b in found.boxes], 2)[0].T * points[:, 2:]
    torch.testing.assert_close(points[:, :2] - sides[:, :2], boxes[0, :, :2])
    torch.testing.assert_close(points[:, :2] + sides[:, 2:], boxes[0, :, 2:])
    torch.testing.assert_close(torch.cat([s.flatten(2) for s in found.scores], 2)[0].T, logits[0])


def test_losses_vanish_where_both_agree_and_only_there() -> None:
    told, other = outputs(0), outputs(1)
    assert told.segmentation is not None and told.scores and told.boxes
    assert other.segmentation is not None and other.scores and other.boxes

    def logit(maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [m.logit() for m in maps]

    same = [
        losses.feature_distance(told.features, told.features),
        losses.relational_distance(told.features, told.features),
        losses.soft_segmentation_loss(told.segmentation.log(), told.segmentation),
        losses.score_loss(logit(told.scores), told.scores),
        losses.box_loss(told.boxes, told.boxes, told.scores),
    ]
    differ = [
        losses.feature_distance(other.features, told.features),
        losses.relational_distance(other.features, told.features),
        losses.soft_segmentation_loss(other.segmentation.log(), told.segmentation),
        losses.score_loss(logit(other.scores), told.scores),
        losses.box_loss(other.boxes, told.boxes, told.scores),
    ]
    for zero, more in zip(same, differ, strict=True):
        assert float(zero) == pytest.approx(0, abs=1e-5) and float(more) > 1e-3


def test_boxes_pull_towards_the_teachers_even_without_overlap() -> None:
    sides = torch.full((1, 4, 1, 1), 0.01, requires_grad=True)
    target, score = torch.full((1, 4, 1, 1), 5.0), torch.full((1, 1, 1, 1), 0.9)
    losses.box_loss([sides], [target], [score]).backward()
    assert sides.grad is not None and (sides.grad < 0).all()


def test_every_class_gets_its_surest_pixels() -> None:
    probabilities = torch.full((1, 2, 20, 20), 0.5)
    probabilities[:, 0, :10] = torch.linspace(0.9, 0.99, 200).reshape(10, 20)
    probabilities[:, 0, 10:] = torch.linspace(0.2, 0.4, 200).reshape(10, 20)
    probabilities[:, 1] = 1 - probabilities[:, 0]
    weight = ClassThresholds(2, kept=0.25)(probabilities)
    assert int((weight[:, :10] > 0).sum()) == 50 and int((weight[:, 10:] > 0).sum()) == 50
    sharp = sharpened(probabilities)
    torch.testing.assert_close(sharp.sum(1), torch.ones(1, 20, 20))
    assert (sharp.amax(1) >= probabilities.amax(1)).all()


def test_pasting_takes_all_that_is_known_of_the_pasted_classes() -> None:
    ones = torch.ones(1, 16, 24)
    under = Lesson(np.zeros((*SIZE, 3), np.float32), outputs(0), ones * 0.3)
    over = Lesson(np.full((*SIZE, 3), 9, np.float32), outputs(1), ones)
    made = paste(under, over, np.random.default_rng(0))
    taken = made.weight == 1
    assert made.weight is not None and 0.1 < float(taken.float().mean()) < 0.9
    assert made.outputs.segmentation is not None and over.outputs.segmentation is not None
    where = taken[0].numpy().repeat(4, 0).repeat(4, 1)
    assert (made.image[where] == 9).all() and (made.image[~where] == 0).all()
    classes = over.outputs.segmentation.argmax(1)
    assert not set(classes[taken].tolist()) & set(classes[~taken].tolist())
    torch.testing.assert_close(
        made.outputs.segmentation[:, :, taken[0]], over.outputs.segmentation[:, :, taken[0]]
    )


@pytest.mark.parametrize("kind", ["blur", "dark", "noise"])
def test_a_source_frame_in_the_looks_of_a_place(kind: str, world: Path) -> None:
    rng = np.random.default_rng(0)
    source = np.stack([f.image for f in open_frames(str(world.parent / "images"))])
    shift = {
        "blur": lambda x: cv2.GaussianBlur(x, (0, 0), 2.5),
        "dark": lambda x: (x * 0.3).astype(np.uint8),
        "noise": lambda x: np.clip(x + rng.normal(0, 40, x.shape), 0, 255).astype(np.uint8),
    }[kind]
    place = np.stack([shift(x) for x in source[:8]])
    style = measure(place, source[8:], light=kind == "dark")
    styled = np.stack([style(x, rng) for x in source[8:]])
    wanted = np.stack([shift(x) for x in source[8:]]).astype(np.float32)

    def rough(x: np.ndarray) -> float:
        return float(np.abs(np.diff(x.astype(np.float32), axis=2)).mean())

    assert np.abs(styled.mean() - wanted.mean()) < 4
    assert rough(styled) == pytest.approx(rough(wanted), rel=0.35)
    if kind != "noise":
        before = np.abs(source[8:].astype(np.float32) - wanted).mean()
        assert np.abs(styled - wanted).mean() < 0.7 * before
    plain = measure(source, source, light=True)(source[0], rng)
    assert np.abs(plain - source[0]).mean() < 3, "a place like the source changes little"


def test_half_the_strength_of_a_blur_is_a_blur_of_half_the_variance(world: Path) -> None:
    source = np.stack([f.image for f in open_frames(str(world.parent / "images"))])
    blurred, between = (
        np.stack([cv2.GaussianBlur(x, (0, 0), sigma) for x in source])
        for sigma in (3, 3 * 0.5**0.5)
    )
    style = measure(blurred, source, light=False)
    made = style(source[0], np.random.default_rng(0), 0.5)
    inside = slice(12, -12)  # opposite borders meet in the transform
    apart = [float(np.abs(made - x[0])[inside, inside].mean()) for x in (between, blurred, source)]
    assert apart[0] < 0.6 * min(apart[1:]), apart


def test_power_is_that_of_the_boards_input(tmp_path: Path) -> None:
    assert watts(Machine(tmp_path)) is None
    folder = tmp_path / "sys/class/hwmon/hwmon3"
    folder.mkdir(parents=True)
    for name, text in (
        ("in1_label", "VDD_IN"), ("in1_input", "5000"), ("curr1_input", "2000"),
        ("in2_label", "VDD_CPU"), ("in2_input", "5000"), ("curr2_input", "300"),
    ):  # fmt: skip
        (folder / name).write_text(text)
    assert watts(Machine(tmp_path)) == pytest.approx(10.0)
    budget = Budget(watt_hours=1.0, spent=Spent(10.0, 1.0), machine=Machine(tmp_path))
    assert budget.exhausted() == "1 Wh are used up"
    (folder / "curr1_input").write_text("garbage")
    assert watts(Machine(tmp_path)) is None


def test_weights_of_another_student_are_refused(student_bundle: Bundle, tmp_path: Path) -> None:
    fields = student_bundle.manifest.model_dump(exclude={"files", "schema_version"})
    files: dict[str, bytes | Path] = {
        n: student_bundle.file(n) for n in student_bundle.manifest.files
    }
    fields["student"]["neck_width"] = 32
    other = create_bundle(tmp_path / "other.bundle", fields, files)
    with pytest.raises(BundleError, match="tensors are not those of mobilenetv4_conv_small"):
        load_student(other)
    fields["student"]["neck_width"] = 24
    whole_file = student_bundle.file("student.safetensors").read_bytes()
    files["student.safetensors"] = whole_file[:-50]
    broken = create_bundle(tmp_path / "broken.bundle", fields, files)
    with pytest.raises(BundleError, match="cannot be read"):
        load_student(broken)
