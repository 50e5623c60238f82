"""What consolidation says of frames, files and settings that are no good."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from lenient_limits import LENIENT

from edge_runtime.adaptation.consolidation import ConsolidationSettings
from edge_runtime.adaptation.consolidation.material import read_material
from edge_runtime.adaptation.consolidation.run import NotAccepted, consolidate
from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.errors import BundleError, InputError, RefusedError

QUICK = ConsolidationSettings(steps=1)


def test_bad_input_is_named(student_bundle: Bundle, dim_world: Path, tmp_path: Path) -> None:
    frames = dim_world.parent / "images"
    few = tmp_path / "few"
    few.mkdir()
    for image in sorted(frames.iterdir())[:3]:
        shutil.copy(image, few)
    with pytest.raises(InputError, match="3 readable frames, expected at least 4"):
        consolidate(student_bundle, few, tmp_path / "n.bundle", QUICK)
    with pytest.raises(BundleError, match="exists already"):
        consolidate(student_bundle, frames, student_bundle.path, QUICK)
    with pytest.raises(BundleError, match="must end in '.bundle'"):
        consolidate(student_bundle, frames, tmp_path / "new", QUICK)
    with pytest.raises(InputError, match="measures its power"):
        consolidate(student_bundle, frames, tmp_path / "n.bundle", QUICK, watt_hours=1.0)


def test_broken_frames_are_skipped(student_bundle: Bundle, dim_world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    shutil.copytree(dim_world.parent / "images", folder)
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:60])
    (folder / "001.png").write_bytes(b"not an image")
    cv2.imwrite(str(folder / "002.png"), np.zeros((7, 1000, 3), np.uint8))
    material = read_material(student_bundle, folder)
    assert len(material.place) + len(material.kept_out.place) == 22


def test_a_place_that_looks_do_not_explain_is_refused(
    student_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    for index in range(8):
        cv2.imwrite(str(folder / f"{index}.png"), np.roll(stripes, index, 1))
    out = tmp_path / "n.bundle"
    with pytest.raises(RefusedError, match="differs in more than looks"):
        consolidate(student_bundle, folder, out, QUICK)
    assert list(tmp_path.iterdir()) == [folder], "nothing may be left"


@pytest.mark.parametrize("spoil", ["truncated", "foreign", "missing"])
def test_a_spoilt_checkpoint_is_never_used(
    spoil: str, student_bundle: Bundle, dim_world: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    frames, out = str(dim_world.parent / "images"), tmp_path / "n.bundle"
    checkpoint = tmp_path / ".n.consolidation.safetensors"
    settings = ConsolidationSettings(steps=4, lr=0.02, place=1.0, rehearsal=0.0, anchor=0.0)
    with pytest.raises(NotAccepted):  # leaves its checkpoint
        consolidate(student_bundle, frames, out, settings)
    if spoil == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    elif spoil == "missing":
        from safetensors import safe_open

        with safe_open(checkpoint, "np") as file:
            notes = file.metadata()
        state = load_file(checkpoint)
        del state["thresholds"]
        save_file(state, checkpoint, notes)
    else:
        settings = ConsolidationSettings(steps=1)
        made = consolidate(student_bundle, frames, out, settings, LENIENT)
        assert made.steps == 1, "the state of other settings must not count"
        return
    with pytest.raises(InputError, match="unfinished consolidation is damaged"):
        consolidate(student_bundle, frames, out, settings)


def test_a_canary_without_labels_is_refused(
    student_bundle: Bundle, dim_world: Path, tmp_path: Path
) -> None:
    canary = dict(np.load(student_bundle.file("canary.npz")))
    canary["masks"][:] = 255
    path = tmp_path / "canary.npz"
    np.savez(path, **canary)
    files = {n: student_bundle.file(n) for n in student_bundle.manifest.files}
    fields = student_bundle.manifest.model_dump(exclude={"files", "schema_version"})
    bundle = create_bundle(tmp_path / "b.bundle", fields, {**files, "canary.npz": path})
    with pytest.raises(BundleError, match="no usable labels 'masks'"):
        consolidate(bundle, dim_world.parent / "images", tmp_path / "n.bundle", QUICK)


def test_without_torch_the_command_says_what_to_install(student_bundle: Bundle) -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom edge_runtime.cli import main; main()"
    words = ["consolidate", student_bundle.path, "--memory", "."]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "fieldsight[adapt]" in done.stderr
