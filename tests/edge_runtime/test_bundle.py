from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import bundle as bundle_module
from edge_runtime.bundle import Bundle, create_bundle, open_bundle, verify_bundle
from edge_runtime.errors import BundleError, InputError


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle.path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip_keeps_content_and_fills_in_name_and_date(
    tiny_bundle: Bundle, network: bytes
) -> None:
    opened = verify_bundle(tiny_bundle.path)
    assert opened.manifest == tiny_bundle.manifest
    assert opened.manifest.name == "tiny"
    assert opened.manifest.created
    assert opened.manifest.adapter_size == 6
    assert opened.file("model.onnx").read_bytes() == network
    with pytest.raises(BundleError, match=r"no file 'model.int8.onnx'.*model.onnx"):
        opened.file("model.int8.onnx")


def test_a_tampered_file_is_refused_by_name(tiny_bundle: Bundle) -> None:
    file = tiny_bundle.file("model.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        open_bundle(tiny_bundle.path)


def test_a_truncated_file_is_refused_even_without_hashing(tiny_bundle: Bundle) -> None:
    file = tiny_bundle.file("canary.npz")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"canary\.npz has \d+ bytes, expected \d+"):
        open_bundle(tiny_bundle.path, verify=False)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_missing_file_is_refused_by_name(tiny_bundle: Bundle, name: str) -> None:
    (tiny_bundle.path / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(tiny_bundle.path)


@pytest.mark.parametrize("name", ["extra.bin", "model.int8.onnx"])
def test_a_file_that_is_not_listed_is_refused(tiny_bundle: Bundle, name: str) -> None:
    (tiny_bundle.path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"unknown file '{name}'"):
        open_bundle(tiny_bundle.path)


def test_a_newer_schema_is_refused_whatever_else_it_holds(tiny_bundle: Bundle) -> None:
    edit(tiny_bundle, lambda m: m.update(schema_version=2, novelty={"a": 1}))
    with pytest.raises(BundleError, match=r"schema version 2.*update fieldsight"):
        open_bundle(tiny_bundle.path)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "a/../../b", "..", "a\\b"])
def test_names_that_leave_the_folder_are_refused(
    tiny_bundle: Bundle, name: str, network: bytes, fields: dict[str, Any], tmp_path: Path
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    edit(tiny_bundle, lambda m: m["files"].update({name: entry}))
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        open_bundle(tiny_bundle.path)
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        create_bundle(tmp_path / "b.bundle", fields, {"model.onnx": network, name: b"x"})
    assert not (tmp_path / "b.bundle").exists()


def test_a_link_in_place_of_a_file_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    file = tiny_bundle.file("model.onnx")
    outside = tmp_path / "outside.onnx"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(BundleError, match=r"model\.onnx is a link"):
        open_bundle(tiny_bundle.path)


def test_a_misspelt_key_names_the_nearest_right_one(tiny_bundle: Bundle) -> None:
    edit(tiny_bundle, lambda m: m.update(clases=m.pop("classes")))
    with pytest.raises(BundleError, match=r"unknown key 'clases'; did you mean 'classes'\?"):
        open_bundle(tiny_bundle.path)


def test_a_misspelt_nested_key_names_the_nearest_in_its_part(tiny_bundle: Bundle) -> None:
    point = {"name": "stem", "chanels": 3}
    edit(tiny_bundle, lambda m: m["student"].update(adapter=[point]))
    with pytest.raises(BundleError, match=r"'student\.adapter\.0\.chanels'.*'channels'"):
        open_bundle(tiny_bundle.path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_an_unreadable_manifest_is_refused(tiny_bundle: Bundle, content: bytes) -> None:
    (tiny_bundle.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="manifest.json"):
        open_bundle(tiny_bundle.path)


def test_a_path_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "none.bundle")
    (tmp_path / "file.bundle").write_bytes(b"")
    with pytest.raises(BundleError, match="is a file"):
        open_bundle(tmp_path / "file.bundle")
    (tmp_path / "empty.bundle").mkdir()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        open_bundle(tmp_path / "empty.bundle")


@pytest.mark.parametrize("failure", ["field", "file", "rename"])
def test_an_existing_bundle_survives_a_failed_replacement(
    tiny_bundle: Bundle,
    network: bytes,
    fields: dict[str, Any],
    failure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = snapshot(tiny_bundle.path.parent)
    files: dict[str, bytes | Path] = {"model.onnx": network}
    if failure == "field":
        fields["tasks"] = ["juggling"]
    elif failure == "file":
        files["canary.npz"] = tiny_bundle.path.parent / "absent.npz"
    else:

        def broken(*_: object) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr(bundle_module, "atomic_write_bytes", broken)
    with pytest.raises((BundleError, OSError)):
        create_bundle(tiny_bundle.path, fields, files, overwrite=True)
    assert snapshot(tiny_bundle.path.parent) == before
    assert [path.name for path in tiny_bundle.path.parent.iterdir()] == ["tiny.bundle"]


def test_replacing_needs_to_be_asked_for(
    tiny_bundle: Bundle, network: bytes, fields: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match="exists already"):
        create_bundle(tiny_bundle.path, fields, {"model.onnx": network})
    replaced = create_bundle(tiny_bundle.path, fields, {"model.onnx": network}, overwrite=True)
    assert set(replaced.manifest.files) == {"model.onnx"}
    assert [path.name for path in tiny_bundle.path.parent.iterdir()] == ["tiny.bundle"]


def test_creation_refuses_wrong_names_and_foreign_folders(
    tmp_path: Path, network: bytes, fields: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match=r"must end in '\.bundle'"):
        create_bundle(tmp_path / "model", fields, {"model.onnx": network})
    with pytest.raises(BundleError, match=r"needs 'model\.onnx'"):
        create_bundle(tmp_path / "a.bundle", fields, {"canary.npz": b""})
    with pytest.raises(BundleError, match="'notes.txt' is not a file that a bundle may hold"):
        create_bundle(tmp_path / "a.bundle", fields, {"model.onnx": network, "notes.txt": b""})
    foreign = tmp_path / "photos.bundle"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(BundleError, match="is no bundle"):
        create_bundle(foreign, fields, {"model.onnx": network}, overwrite=True)
    assert (foreign / "holiday.jpg").read_bytes() == b"dear"
