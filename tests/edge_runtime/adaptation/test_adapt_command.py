"""`fieldsight-run adapt` on a labelled dataset, a folder and a store, and what it must refuse."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from colours import World


@pytest.fixture
def run(run: Any) -> Any:
    """Runs `fieldsight-run adapt` with arguments; gives exit code, stdout and stderr."""
    return partial(run, "adapt")


def test_a_labelled_recording_is_judged_before_and_after(
    run: Any, world: World, tmp_path: Path
) -> None:
    file, store = tmp_path / "adapt.json", tmp_path / "adapters"
    arguments = (f"{world.yaml}:all", "--shift", "cast:0.6", "--store", store, "--json", file)
    code, out, _ = run(world.bundle.path, *arguments, "--out", tmp_path / "out")
    found = json.loads(file.read_text())
    assert code == 0 and "next: fieldsight-run adapt" in out
    assert found["frames"] == 40 and found["state"] == "shifted" and found["promotions"] == 1
    assert found["rollbacks"] == found["faults"] == 0 and found["drift"] > found["drift_threshold"]
    before, after = (found[name]["segmentation"]["miou"] for name in ("before", "after"))
    assert after > before + 0.05

    page = (tmp_path / "out" / "report.html").read_text()
    assert "Mean IoU by frame" in page and "promoted" in page and "data:image/jpeg" in page
    assert "http://" not in page and "https://" not in page and 'src="data:' in page
    code, out, _ = run(world.bundle.path, "--store", store, "--list")
    assert code == 0 and "event promoted" in out


def test_the_shadow_leaves_the_figures_as_they_were(run: Any, world: World, tmp_path: Path) -> None:
    file = tmp_path / "adapt.json"
    arguments = ("--shift", "cast:0.6", "--mode", "shadow", "--json", file)
    assert run(world.bundle.path, f"{world.yaml}:all", *arguments)[0] == 0
    found = json.loads(file.read_text())
    assert found["promotions"] == 1 and found["before"] == found["after"]


def test_a_folder_without_labels_is_replayed_to_its_limit(
    run: Any, world: World, tmp_path: Path
) -> None:
    file = tmp_path / "adapt.json"
    code, _, _ = run(world.bundle.path, world.yaml.parent / "images", "--limit", 7, "--json", file)
    found = json.loads(file.read_text())
    assert code == 0 and found["frames"] == 7 and "before" not in found
    assert found["state"] == "normal" and found["promotions"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a source"),
        (("SOURCE", "--shift", "frog:0.5"), "unknown kind"),
        (("SOURCE", "--strategy", "algin"), "expected align"),
        (("SOURCE", "--mode", "maybe"), "expected off, shadow, on"),
        (("nowhere",), "does not exist"),
        (("--list",), "--list needs --store"),
        (("--list", "--store", "nowhere"), "no such folder"),
    ],
)
def test_what_cannot_be_done_is_said(
    run: Any, world: World, arguments: tuple[str, ...], message: str
) -> None:
    given = [world.yaml.parent / "images" if a == "SOURCE" else a for a in arguments]
    code, _, err = run(world.bundle.path, *given)
    assert code == 2 and message in err and "Traceback" not in err


def test_a_bundle_without_reference_is_named(run: Any, tiny_bundle: Any, tmp_path: Path) -> None:
    code, _, err = run(tiny_bundle.path, tmp_path)
    assert code == 2 and "reference.safetensors" in err
