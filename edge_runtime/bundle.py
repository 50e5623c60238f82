"""The model bundle: the one thing that travels from workstation to robot.

A folder `NAME.bundle/` with a `manifest.json` that lists every other file with its size and
SHA-256. Opening verifies all of it; creating is atomic.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_runtime.errors import BundleError, explain_validation
from edge_runtime.files import atomic_folder, atomic_write_bytes, sha256

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
KNOWN_FILES = (
    "model.onnx",
    "model.int8.onnx",
    "model.int8-cpu.onnx",
    "student.safetensors",
    "reference.safetensors",
    "canary.npz",
    "calibration.json",
)
Task = Literal["detection", "segmentation"]


class Spec(BaseModel):
    """Base of the manifest's parts: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class InputSpec(Spec):
    """The network's image: `height` x `width` pixels and how a raw image is fitted into it."""

    height: int = Field(gt=0, le=8192)
    width: int = Field(gt=0, le=8192)
    color: Literal["rgb"] = "rgb"
    dtype: Literal["uint8"] = "uint8"
    resize: Literal["stretch", "letterbox"] = "stretch"


class TensorSpec(Spec):
    """An input or output of the network; the shape is static."""

    name: str
    dtype: str
    shape: list[int]


class ClassSpec(Spec):
    """A class and the RGB colour it is drawn in."""

    name: str
    color: tuple[int, int, int]


class AdapterPointSpec(Spec):
    """A place in the network with a scale and a shift per channel."""

    name: str
    channels: int = Field(gt=0)


class StudentSpec(Spec):
    """What is needed to rebuild the network for training: trunk, head sizes, adapter layout."""

    trunk: str
    neck_width: int = Field(gt=0)
    head_width: int = Field(gt=0)
    head_depth: int = Field(ge=0)
    adapter: list[AdapterPointSpec]


class Provenance(Spec):
    """Where the weights come from."""

    teachers: list[str] = []
    teacher_licence: str | None = None
    data_digest: str | None = None
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None


class CameraSpec(Spec):
    """Intrinsics of the camera whose lens perception should undistort.

    `K` is the 3x3 camera matrix row by row (9 values, pixels at `width` x `height`), `D` the
    distortion coefficients in OpenCV's order for `model` (names as in sensor_msgs/CameraInfo).
    """

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    model: Literal["plumb_bob", "rational_polynomial", "equidistant"] = "plumb_bob"
    K: list[float] = Field(min_length=9, max_length=9)
    D: list[float]


class FileSpec(Spec):
    """Checksum and size of one file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Spec):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
    name: str
    created: str
    tasks: list[Task] = Field(min_length=1)
    input: InputSpec
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    classes: dict[Task, list[ClassSpec]]
    ignore_index: int | None = None
    student: StudentSpec
    provenance: Provenance = Provenance()
    metrics: dict[str, Any] = {}
    camera: CameraSpec | None = None
    files: dict[str, FileSpec]

    @property
    def adapter_size(self) -> int:
        """Length A of the adapter and statistics vectors."""
        return 2 * sum(point.channels for point in self.student.adapter)


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
