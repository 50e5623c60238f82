"""The model bundle: the one thing that travels from workstation to robot.

A folder `NAME.bundle/` with a `manifest.json` that lists every other file with its size and
SHA-256. Opening verifies all of it; creating and updating are atomic.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pydantic_core
from pydantic import ValidationError

from edge_runtime.errors import BundleError, explain_validation
from edge_runtime.files import atomic_folder, atomic_write_bytes, sha256
from edge_runtime.manifest import SCHEMA_VERSION, FileSpec, Manifest

MANIFEST = "manifest.json"
KNOWN_FILES = (
    "model.onnx",
    "model.fp16.onnx",
    "model.int8.onnx",
    "model.int8-cpu.onnx",
    "student.safetensors",
    "reference.safetensors",
    "predictor.safetensors",
    "places.safetensors",
    "canary.npz",
    "rehearsal.npz",
    "calibration.json",
)


def identity_adapter(manifest: Manifest) -> np.ndarray:
    """The adapter that changes nothing: float32 [A], per point ones [C] and then zeros [C]."""
    parts = [
        np.repeat(np.array([1, 0], np.float32), point.channels)
        for point in manifest.student.adapter
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its folder and what its manifest says."""

    path: Path
    manifest: Manifest

    def has(self, name: str) -> bool:
        """Whether the bundle lists the file `name`."""
        return name in self.manifest.files

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files.

        Raises:
            BundleError: The manifest does not list `name`.
        """
        if not self.has(name):
            listed = ", ".join(sorted(self.manifest.files))
            raise BundleError(f"{self.path}: the bundle has no file '{name}'; it has {listed}")
        return self.path / name


def open_bundle(path: Path | str, verify: bool = True) -> Bundle:
    """Open a bundle and check that it is whole and unaltered.

    Args:
        path: The folder.
        verify: Compare every file's size and SHA-256. Without it only names and sizes are.

    Raises:
        BundleError: Names the file that is missing, unknown, altered or unreadable.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise BundleError(f"{path}: {what}; expected the folder of a bundle")
    manifest = _read_manifest(path)
    for name in manifest.files:
        _check_name(name, path)
    if "model.onnx" not in manifest.files:
        raise BundleError(f"{path}: {MANIFEST} lists no model.onnx; export the bundle again")
    found = {entry.name for entry in path.iterdir()}
    if unknown := sorted(found - set(manifest.files) - {MANIFEST}):
        raise BundleError(
            f"{path}: unknown file '{unknown[0]}', not in {MANIFEST}; remove it or export again"
        )
    for name, spec in manifest.files.items():
        _check_file(path / name, spec, verify)
    return Bundle(path, manifest)


def verify_bundle(path: Path | str) -> Bundle:
    """Open a bundle with every check; see `open_bundle`."""
    return open_bundle(path, verify=True)


def create_bundle(
    path: Path | str,
    manifest_fields: Mapping[str, Any],
    files: Mapping[str, bytes | Path],
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle in one atomic step.

    Args:
        path: Folder to create; its name ends in ".bundle".
        manifest_fields: Fields of `Manifest` except `files` (and `schema_version`); `name` and
            `created` are filled in if absent.
        files: Content, or file to copy, for each name of `KNOWN_FILES` to include.
        overwrite: Replace an existing bundle. It stays as it was if anything fails.

    Raises:
        BundleError: The name, a field or a file is not acceptable; nothing was changed.
    """
    path = Path(path)
    if path.suffix != ".bundle" or not path.stem:
        raise BundleError(f"{path}: a bundle's name must end in '.bundle', such as 'my.bundle'")
    if path.is_symlink() or (path.exists() and not overwrite):
        raise BundleError(f"{path} exists already; choose another name or allow overwriting")
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is no bundle; it will not be overwritten")
    for name in files:
        _check_name(name, path)
    if "model.onnx" not in files:
        raise BundleError(f"{path}: a bundle needs 'model.onnx'; given: {sorted(files)}")
    with atomic_folder(path) as folder:
        listed = {}
        for name, content in files.items():
            data = content if isinstance(content, bytes) else Path(content).read_bytes()
            atomic_write_bytes(folder / name, data)
            listed[name] = {"sha256": sha256(folder / name), "bytes": len(data)}
        defaults = {
            "name": path.stem,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        fields = {"schema_version": SCHEMA_VERSION, **defaults, **manifest_fields, "files": listed}
        raw = pydantic_core.to_json(fields, inf_nan_mode="null", indent=2)
        _parse_manifest(raw, path)
        atomic_write_bytes(folder / MANIFEST, raw + b"\n")
    return open_bundle(path)


def update_bundle(
    bundle: Bundle,
    files: Mapping[str, bytes | Path | None],
    manifest_fields: Mapping[str, Any] | None = None,
) -> Bundle:
    """Replace, add or remove files of a bundle and fields of its manifest in one atomic step.

    Args:
        bundle: An opened bundle; its other files are kept as they are.
        files: Content, or file to copy, by name; None removes that file.
        manifest_fields: Fields of `Manifest` to replace.

    Raises:
        BundleError: Something is not acceptable; the bundle is unchanged.
    """
    bundle = open_bundle(bundle.path)  # what is carried over must still be what was listed
    kept: dict[str, bytes | Path] = {name: bundle.file(name) for name in bundle.manifest.files}
    for name, content in files.items():
        if content is not None:
            kept[name] = content
        else:
            kept.pop(name, None)
    fields = bundle.manifest.model_dump(exclude={"files", "schema_version"})
    return create_bundle(bundle.path, {**fields, **(manifest_fields or {})}, kept, overwrite=True)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{path}: no {MANIFEST}; this is not a bundle, or a part of one")
    return _parse_manifest(file.read_bytes(), path)


def _parse_manifest(raw: bytes, path: Path) -> Manifest:
    source = str(path / MANIFEST)
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{source}: not valid JSON ({error}); copy the bundle again") from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{source}: schema version {version}, but this program reads up to "
            f"{SCHEMA_VERSION}; update fieldsight"
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise BundleError(explain_validation(error, Manifest, source)) from None


def _check_name(name: str, path: Path) -> None:
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise BundleError(f"{path}: file name {name!r} leaves the bundle's folder; refused")
    if name not in KNOWN_FILES:
        known = ", ".join(KNOWN_FILES)
        raise BundleError(f"{path}: '{name}' is not a file that a bundle may hold ({known})")


def _check_file(file: Path, spec: FileSpec, verify: bool) -> None:
    try:
        info = file.lstat()
    except FileNotFoundError:
        raise BundleError(f"{file} is missing; copy the bundle again") from None
    if not stat.S_ISREG(info.st_mode):
        raise BundleError(f"{file} is a link or not a plain file; refused")
    if info.st_size != spec.bytes:
        raise BundleError(
            f"{file} has {info.st_size} bytes, expected {spec.bytes}; copy the bundle again"
        )
    if verify and sha256(file) != spec.sha256:
        raise BundleError(f"{file} was altered: its SHA-256 differs from the manifest's; refused")
