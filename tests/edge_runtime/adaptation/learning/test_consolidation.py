"""Consolidation from the command line: what it gains, what it refuses, and what survives a kill."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lenient_limits import LENIENT
from typer.testing import CliRunner

from edge_runtime.adaptation.consolidation import ConsolidationSettings
from edge_runtime.adaptation.consolidation.lessons import Curriculum, Lessons, looks_of
from edge_runtime.adaptation.consolidation.material import read_material
from edge_runtime.adaptation.consolidation.run import NotAccepted, consolidate
from edge_runtime.adaptation.consolidation.selftraining import SelfTraining, blended
from edge_runtime.adaptation.network import load_student
from edge_runtime.bundle import Bundle, create_bundle, identity_adapter, open_bundle
from edge_runtime.cli import app
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import BundleError
from edge_runtime.evaluation import evaluate
from edge_runtime.files import sha256
from edge_runtime.perception import Perception

QUICK = ConsolidationSettings(steps=12, checkpoint_every=4, place=0.5)


def miou(bundle: Bundle, data: Path) -> float:
    figures = evaluate(Perception(bundle), load_dataset(f"{data}:all"), progress=False)
    return figures["segmentation"]["miou"]


@pytest.fixture(scope="module")
def consolidated(
    student_bundle: Bundle, dim_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, dict]:
    """A bundle that learnt the dim world by the command line, and the command's report."""
    folder = tmp_path_factory.mktemp("consolidated")
    out, report = folder / "dim.bundle", folder / "report.json"
    words = ["consolidate", str(student_bundle.path), "--memory", str(dim_world.parent / "images")]
    words += ["--out", str(out), "--steps", "60", "--lr", "1e-3", "--json", str(report)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "fieldsight-run verify" in result.output
    return open_bundle(out), json.loads(report.read_text())


def test_it_learns_a_place_without_labels_and_keeps_the_source(
    consolidated: tuple[Bundle, dict], student_bundle: Bundle, dim_world: Path, world: Path
) -> None:
    bundle, report = consolidated
    assert report["accepted"] and report["steps"] == 60 and report["stopped"] is None
    assert miou(bundle, dim_world) > miou(student_bundle, dim_world) + 0.10
    assert miou(bundle, world) > miou(student_bundle, world) - 0.06
    assert report["after"]["agreement"] > report["before"]["agreement"] - 0.02


def test_a_batch_has_frames_as_they_are_and_in_the_looks_of_the_place(
    student_bundle: Bundle, dim_world: Path
) -> None:
    """Averaged over batches, since single views are disturbed."""
    material = read_material(student_bundle, str(dim_world.parent / "images"))
    settings = ConsolidationSettings(clean_frames=2, rehearsed_frames=3)
    student = load_student(student_bundle)
    style = looks_of(student_bundle, student, material.place, material.source).style
    taken = material.place, identity_adapter(student_bundle.manifest), style, material.source
    lessons = Lessons(*taken, material.masks, material.class_weight)
    curriculum = Curriculum(student, lessons, settings)
    rng = np.random.default_rng(0)
    batches = [curriculum.of_home(rng) + curriculum.of_looks(rng) for _ in range(20)]
    light = np.mean([[lesson.image.mean() for lesson in batch] for batch in batches], 0)
    home, place = material.source.mean(), material.place.mean()
    middle = (home + place) / 2
    assert light.shape == (5,) and place < 0.5 * home
    assert (light[:2] > middle).all() and (light[2:] < light[:2].min()).all()
    np.testing.assert_allclose(light[:2], home, rtol=0.1)
    either = np.concatenate([material.source, material.source[:, :, ::-1]])
    for lesson in curriculum.of_home(rng):
        assert (either == lesson.image).all((1, 2, 3)).any(), "home is learnt whole, as it is"


def test_a_place_out_of_focus_is_rehearsed_in_the_light_of_home(
    student_bundle: Bundle, dim_world: Path, world: Path
) -> None:
    """Whatever the brightness of what there is to see."""
    material = read_material(student_bundle, str(dim_world.parent / "images"))
    student, source = load_student(student_bundle), material.source
    bright = source[np.argsort(source.mean((1, 2, 3)))[len(source) // 2 :]]
    place = np.stack([cv2.GaussianBlur(x, (0, 0), 3) for x in bright])
    looks = looks_of(student_bundle, student, place, source)
    assert not looks.lit and looks.suffices
    assert looks_of(student_bundle, student, material.place, source).lit


def test_the_place_is_learnt_under_its_adapter_and_home_without(
    student_bundle: Bundle, dim_world: Path
) -> None:
    material = read_material(student_bundle, str(dim_world.parent / "images"))
    student, identity = load_student(student_bundle), identity_adapter(student_bundle.manifest)
    style = looks_of(student_bundle, student, material.place, material.source).style
    rest = style, material.source, material.masks, material.class_weight
    losses = []
    for adapter in (identity, 0.5 * identity):
        lessons = Lessons(material.place, adapter, *rest)
        losses.append(SelfTraining(student, lessons, ConsolidationSettings()).advance())
    plain, under = losses
    assert under["home.segmentation"] == plain["home.segmentation"]
    assert abs(under["looks.segmentation"] - plain["looks.segmentation"]) > 1e-3


def test_the_blend_lies_between_the_trained_weights_and_the_learnt_ones(
    student_bundle: Bundle,
) -> None:
    old, new = load_student(student_bundle), load_student(student_bundle)
    with torch.no_grad():
        for value in new.parameters():
            value.add_(1.0)
    for share in (0.25, 1.0):
        result = blended(old, new, share)
        for a, b, c in zip(old.parameters(), result.parameters(), new.parameters(), strict=True):
            torch.testing.assert_close(b - a, torch.full_like(a, share), atol=1e-4, rtol=0)
            torch.testing.assert_close(c - a, torch.ones_like(a), atol=1e-4, rtol=0)


def test_the_new_bundle_is_whole_and_tells_its_making(
    consolidated: tuple[Bundle, dict], student_bundle: Bundle, dim_world: Path
) -> None:
    bundle, _ = consolidated
    assert Perception(bundle).self_test()["mask_agreement"] == 1.0
    note = bundle.manifest.provenance.recipe["consolidations"][-1]
    assert note["from_model_sha256"] == student_bundle.manifest.files["model.onnx"].sha256
    assert note["steps"] == 60 and note["frames"] == 21
    assert bundle.manifest.metrics.keys() == {"before_consolidation"}
    old, new = (dict(np.load(b.file("canary.npz"))) for b in (student_bundle, bundle))
    for labels in ("masks", "boxes"):
        np.testing.assert_array_equal(old[labels], new[labels])
    assert read_material(bundle, str(dim_world.parent / "images")), "it can be consolidated again"
    assert (old["expected_mask"] != new["expected_mask"]).any()
    assert not list(bundle.path.parent.glob(".*")), "nothing unfinished may be left"


def test_the_reference_follows_the_new_weights(
    consolidated: tuple[Bundle, dict], student_bundle: Bundle, world: Path
) -> None:
    """Unadapted statistics of source frames are as near to the new reference as to the old."""
    from edge_runtime.adaptation.evidence import distance_from
    from edge_runtime.adaptation.reference import Reference
    from edge_runtime.prediction import open_frames

    distances = []
    for bundle in (student_bundle, consolidated[0]):
        perception = Perception(bundle)
        rows = [perception(f).statistics for f in open_frames(str(world.parent / "images"))]
        distances.append(distance_from(Reference.of(bundle), np.stack(rows)))
    assert distances[1] < distances[0] + 0.02


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    student_bundle: Bundle, dim_world: Path, tmp_path: Path
) -> None:
    frames = str(dim_world.parent / "images")
    whole = consolidate(student_bundle, frames, tmp_path / "whole.bundle", QUICK, LENIENT)
    out = tmp_path / "killed.bundle"
    code = (
        "import sys; from pathlib import Path\n"
        "from edge_runtime.adaptation.consolidation import *\n"
        "from edge_runtime.adaptation.consolidation.run import consolidate\n"
        "from edge_runtime.bundle import open_bundle\n"
        "settings = ConsolidationSettings(steps=12, checkpoint_every=4, place=0.5)\n"
        "consolidate(open_bundle(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), settings)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, student_bundle.path, frames, out])
    checkpoint = tmp_path / ".killed.consolidation.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert checkpoint.exists() and not out.exists()
    seen: list[int] = []
    resumed = consolidate(
        student_bundle, frames, out, QUICK, LENIENT, progress=lambda done, _: seen.append(done)
    )
    assert seen[0] > 1, "it should not have begun anew"
    for name in ("student.safetensors", "model.onnx"):
        assert sha256(resumed.bundle.file(name)) == sha256(whole.bundle.file(name))
    assert not checkpoint.exists()


def test_what_is_ruined_is_not_written(
    student_bundle: Bundle, dim_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ruined.bundle"
    settings = ConsolidationSettings(steps=6, lr=0.02, place=1.0, rehearsal=0.0, anchor=0.0)
    with pytest.raises(NotAccepted, match=r"not accepted: .*canary.* keep ") as refused:
        consolidate(student_bundle, str(dim_world.parent / "images"), out, settings)
    assert not out.exists() and refused.value.exit_code == 3
    assert refused.value.verdict.numbers["before"]["canary_miou"] > 0.5
    assert not list(tmp_path.glob(".consolidating*"))


def test_what_adapting_does_as_well_is_not_written(
    student_bundle: Bundle, dim_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "idle.bundle"
    frames = str(dim_world.parent / "images")
    with pytest.raises(NotAccepted, match="adapting does as much") as refused:
        consolidate(student_bundle, frames, out, ConsolidationSettings(steps=1, lr=1e-9))
    numbers = refused.value.verdict.numbers
    assert not out.exists() and numbers["after"]["looks_miou"] <= numbers["before"]["looks_miou"]


def test_frames_to_rehearse_are_learnt_from_and_the_whole_canary_judges(
    student_bundle: Bundle, world: Path, dim_world: Path, tmp_path: Path
) -> None:
    listed = student_bundle.manifest.files
    files: dict[str, bytes | Path] = {name: student_bundle.file(name) for name in listed}
    fields = student_bundle.manifest.model_dump(exclude={"files", "schema_version"})
    canary = dict(np.load(student_bundle.file("canary.npz")))
    names = ("images", "masks", "boxes")
    other = {name: np.concatenate([canary[name], canary[name][:4]]) for name in names}

    def bundle_with(rehearsal: bytes, name: str) -> Bundle:
        return create_bundle(tmp_path / name, fields, {**files, "rehearsal.npz": rehearsal})

    def packed(**arrays: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    whole = bundle_with(packed(**other), "whole.bundle")
    frames = dim_world.parent / "images"
    material = read_material(whole, frames)
    assert len(material.source) == 20 and len(material.kept_out.canary) == 16
    assert len(read_material(student_bundle, frames).source) == 12
    made = consolidate(
        whole, frames, tmp_path / "n.bundle", ConsolidationSettings(steps=1), LENIENT
    ).bundle
    assert sha256(made.file("rehearsal.npz")) == sha256(whole.file("rehearsal.npz"))

    for index, (content, said) in enumerate(
        (
            (packed(**other)[:-200], "rehearsal.npz: cannot be read"),
            (packed(masks=other["masks"]), "holds no uint8 'images'"),
            (packed(**{**other, "images": other["images"][:, ::2]}), "images are"),
            (packed(**{**other, "masks": other["masks"][:3]}), "no usable labels 'masks'"),
            (packed(images=np.array([{}], object)), "cannot be read"),
        )
    ):
        with pytest.raises(BundleError, match=said):
            read_material(bundle_with(content, f"{index}.bundle"), frames)


def test_a_budget_ends_learning_early(
    student_bundle: Bundle, dim_world: Path, tmp_path: Path
) -> None:
    settings = ConsolidationSettings(steps=100_000)
    result = consolidate(
        student_bundle,
        str(dim_world.parent / "images"),
        tmp_path / "short.bundle",
        settings,
        LENIENT,
        minutes=0.02,
    )
    assert result.stopped == "0.02 minutes are used up" and 0 < result.steps < 1000


def test_files_of_other_precisions_are_left_out(
    student_bundle: Bundle, dim_world: Path, tmp_path: Path
) -> None:
    files: dict[str, bytes | Path] = {
        name: student_bundle.file(name) for name in student_bundle.manifest.files
    }
    files["model.int8.onnx"] = student_bundle.file("model.onnx")
    fields = student_bundle.manifest.model_dump(exclude={"files", "schema_version"})
    both = create_bundle(tmp_path / "both.bundle", fields, files)
    settings = ConsolidationSettings(steps=1)
    frames = str(dim_world.parent / "images")
    made = consolidate(both, frames, tmp_path / "n.bundle", settings, LENIENT).bundle
    assert not made.has("model.int8.onnx") and made.has("model.onnx")
