"""Pictures with a class each: folders named after classes, or shards with ``.cls``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from distill.data.images import FileImages, Images
from distill.data.opening import open_data
from distill.data.shards import ShardImages, is_shards
from edge_runtime.dataset_spec import fingerprint, list_images
from edge_runtime.errors import InputError
from edge_runtime.images import IMAGE_SUFFIXES, read_image

_SPLITS = {"train", "val", "valid", "validation", "test"}


class ClassFolders:
    """Pictures of a folder with one subfolder a class, in the order of the classes' names.

    Attributes:
        classes: names of the subfolders, sorted; a picture's class is the place of its own.
    """

    def __init__(self, root: Path, folders: list[Path]) -> None:
        self.root, self.classes = root, [f.name for f in folders]
        self.files = [(f, label) for label, c in enumerate(folders) for f in list_images(c)]
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> np.ndarray:
        """A picture, uint8 [H, W, 3] RGB."""
        return read_image(self.files[index][0])

    def label(self, index: int) -> int | None:
        """Its class."""
        return self.files[index][1]

    def name(self, index: int) -> str:
        """The file."""
        return str(self.files[index][0])

    def digest(self) -> str:
        """Hex SHA-256 of names, sizes and content; of large files only both ends."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for path, _ in self.files:
            digest.update(str(path.relative_to(self.root)).encode() + fingerprint(path))
        return digest.hexdigest()


def class_folders(folder: Path) -> list[Path]:
    """Subfolders that are classes: two or more that hold images, and no image beside them.

    Raises:
        InputError: they are splits.
    """
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if any(p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES for p in inside):
        return []
    found = [p for p in inside if p.is_dir() and _holds_images(p)]
    if found and {p.name.lower() for p in found} <= _SPLITS:
        names = ", ".join(p.name for p in found)
        raise InputError(f"{folder}: its subfolders are splits ({names}); give one of them")
    return found if len(found) > 1 else []


def _holds_images(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.rglob("*"))


def open_classified(spec: str, split: str = "train") -> Images:
    """Pictures with a class where the source has some.

    Unlike `open_images`, nothing is replaced: a picture that cannot be decoded raises when read.

    Args:
        spec: shards (a path or pattern that ends in .tar), a folder with one subfolder a class, or
            what `open_data` opens, whose pictures have no class.
        split: of a dataset where ``spec`` names none.

    Raises:
        InputError: nothing there that can be read.
    """
    if is_shards(spec):
        return ShardImages(spec)
    path = Path(spec)
    if path.is_dir() and not (path / "dataset.yaml").is_file():
        folders = class_folders(path)
        if folders:
            return ClassFolders(path, folders)
    return FileImages(open_data(spec, split))
