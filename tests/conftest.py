"""Fixtures for every test: our commands, small datasets on disk, and real data if present."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("FIELDSIGHT_DATA", ROOT.parent / "shared" / "data"))
CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Runs `main` of a command line with words; gives exit code, stdout and stderr."""
    from edge_runtime import terminal

    def call(main: Callable[[], None], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        monkeypatch.setattr(terminal, "console", Console(width=200))
        monkeypatch.setattr(terminal, "errors", Console(stderr=True, width=200))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def camvid() -> Path:
    """Path of CamVid's ``dataset.yaml``; skips the test where it is absent."""
    path = DATA / "camvid" / "dataset.yaml"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set FIELDSIGHT_DATA to the folder that has camvid/")
    return path


@pytest.fixture(scope="session")
def chessboard() -> Path:
    """Folder of 13 real views of a 9x6 chessboard; skips the test where it is absent."""
    path = DATA / "chessboard"
    if not (path / "left01.jpg").is_file():
        pytest.skip(f"{path} is absent; set FIELDSIGHT_DATA to the folder that has chessboard/")
    return path


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """Folder of CIFAR-10 as WebDataset shards; skips the test where it is absent."""
    path = DATA / "cifar10"
    if not (path / "cifar10-test-0000.tar").is_file():
        pytest.skip(f"{path} is absent; set FIELDSIGHT_DATA to the folder that has cifar10/")
    return path


class TinyDataset:
    """A dataset of two 24x32 frames whose files a test may spoil before it opens them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.yaml = root / "dataset.yaml"
        self.image = root / "images" / "a.png"
        self.mask = root / "masks" / "a.png"
        self.boxes = root / "boxes.json"
        rng = np.random.default_rng(0)
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True)
        self.masks = rng.integers(0, 3, (2, 24, 32), dtype=np.uint8)
        self.masks[:, 0, 0] = 9
        self.images = rng.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
        for name, image, mask in zip("ab", self.images, self.masks, strict=True):
            cv2.imwrite(str(root / "images" / f"{name}.png"), image[..., ::-1])
            cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
        self.coco: dict[str, Any] = {
            "images": [
                {"id": i + 4, "file_name": f"{n}.png", "width": 32, "height": 24}
                for i, n in enumerate("ab")
            ],
            "annotations": [
                {"id": 1, "image_id": 4, "category_id": 7, "bbox": [2, 3, 10, 8], "iscrowd": 0},
                {"id": 2, "image_id": 4, "category_id": 3, "bbox": [16, 4, 8, 12], "iscrowd": 0},
                {"id": 3, "image_id": 5, "category_id": 3, "bbox": [1, 1, 20, 20], "iscrowd": 0},
            ],
            "categories": [{"id": 7, "name": "cone"}, {"id": 3, "name": "box"}],
        }
        self.text = (
            "name: tiny\n"
            "splits:\n  all: {images: images, masks: masks, boxes: boxes.json}\n"
            "segmentation: {classes: [floor, wall, thing], ignore_index: 9}\n"
            "detection: {classes: [box, cone]}\n"
        )
        self.write()

    def write(self) -> None:
        """Write the box file and ``dataset.yaml`` as they now are."""
        self.boxes.write_text(json.dumps(self.coco))
        self.yaml.write_text(self.text)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyDataset:
    """A valid dataset to read or to spoil."""
    return TinyDataset(tmp_path / "tiny")
