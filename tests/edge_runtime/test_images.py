"""Unusual image files are converted as documented; broken ones are refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_runtime.errors import InputError
from edge_runtime.images import read_image, read_mask


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 [20, 30, 3] RGB, smooth enough for JPEG."""
    y, x = np.mgrid[:20, :30]
    return np.stack([x * 8, y * 12, 255 - x * 8], 2).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), array)
    return path


def palette_png(path: Path, indices: np.ndarray, bits: int) -> Path:
    """A palette PNG written by hand, since OpenCV writes none."""
    height, width = indices.shape
    per_byte = 8 // bits
    rows = b""
    for row in indices:
        padded = np.zeros(-(-width // per_byte) * per_byte, np.uint8)
        padded[:width] = row
        value = np.zeros(len(padded) // per_byte, np.uint8)
        for k in range(per_byte):
            value |= padded[k::per_byte] << (8 - bits * (k + 1))
        rows += b"\0" + value.tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    colours = np.random.default_rng(0).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0))
        + chunk(b"PLTE", colours.tobytes())
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_png_is_read_as_rgb(tmp_path, picture):
    assert np.array_equal(read_image(save(tmp_path / "a.png", picture[..., ::-1])), picture)


def test_jpeg_is_read(tmp_path, picture):
    read = read_image(save(tmp_path / "a.jpg", picture[..., ::-1]))
    assert np.abs(read.astype(int) - picture).mean() < 12


def test_grey_is_repeated(tmp_path, picture):
    read = read_image(save(tmp_path / "a.png", picture[..., 0]))
    assert np.array_equal(read, np.repeat(picture[..., :1], 3, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_is_scaled(tmp_path, picture, channels):
    deep = picture[..., :channels].astype(np.uint16) * 257
    read = read_image(save(tmp_path / "a.png", deep[..., ::-1].squeeze()))
    assert np.array_equal(read, np.broadcast_to(picture[..., :channels], read.shape))


def test_alpha_is_dropped(tmp_path, picture):
    with_alpha = np.dstack([picture[..., ::-1], np.full((20, 30), 7, np.uint8)])
    assert np.array_equal(read_image(save(tmp_path / "a.png", with_alpha)), picture)


def test_cmyk_jpeg_is_converted(tmp_path, picture):
    pillow = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.jpg"
    pillow.fromarray(picture).convert("CMYK").save(path, quality=95)
    read = read_image(path)
    assert read.shape == (20, 30, 3)
    assert np.abs(read.astype(int) - picture).mean() < 16


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=f"a.{suffix}"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_missing_empty_and_foreign_files_are_refused(tmp_path, read):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="empty"):
        read(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match="not a picture"):
        read(tmp_path / "text.png")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)


def test_float_picture_is_refused(tmp_path, picture):
    with pytest.raises(InputError, match="float32"):
        read_image(save(tmp_path / "a.tiff", picture.astype(np.float32)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_mask_yields_indices(tmp_path, bits):
    indices = np.random.default_rng(1).integers(0, 1 << bits, (9, 13), dtype=np.uint8)
    assert np.array_equal(read_mask(palette_png(tmp_path / "m.png", indices, bits)), indices)


def test_grey_mask_is_read_exactly(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    assert np.array_equal(read_mask(save(tmp_path / "m.png", mask)), mask)
    assert np.array_equal(read_mask(save(tmp_path / "d.png", mask.astype(np.uint16))), mask)
    assert np.array_equal(read_mask(save(tmp_path / "c.png", np.dstack([mask] * 3))), mask)


def test_colour_and_deep_masks_are_refused(tmp_path, picture):
    with pytest.raises(InputError, match="colour picture"):
        read_mask(save(tmp_path / "m.png", picture))
    with pytest.raises(InputError, match="0 to 255"):
        read_mask(save(tmp_path / "d.png", np.full((4, 4), 700, np.uint16)))
