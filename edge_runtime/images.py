"""Image and mask files as arrays, with every unusual kind either converted as written or refused.

Conversions: greyscale is repeated into three channels; 16-bit values are divided by 257, so that
65535 becomes 255; CMYK is converted by the decoder; alpha is dropped. Pixels are returned as
stored: an EXIF orientation is ignored, since labels refer to stored pixels.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np

from edge_runtime.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_PNG = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path | str) -> np.ndarray:
    """Read a picture as uint8 [H, W, 3] RGB; see the module's text for conversions.

    Raises:
        InputError: The file is missing, empty, cut off, not an image or of another value type.
    """
    return decode_image(_read_bytes(Path(path)), path)


def decode_image(data: bytes, path: Path | str) -> np.ndarray:
    """The content of an image file as `read_image` gives it; `path` names it in errors."""
    array = _decode(data, path)
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(
            f"{path}: pixels are {array.dtype}, expected 8 or 16 bits unsigned; "
            "convert the file to 8-bit PNG or JPEG"
        )
    if array.ndim == 2:
        return cv2.cvtColor(array, cv2.COLOR_GRAY2RGB)
    if array.shape[2] == 1:
        return cv2.cvtColor(array, cv2.COLOR_GRAY2RGB)
    if array.shape[2] == 2:
        return cv2.cvtColor(np.ascontiguousarray(array[..., 0]), cv2.COLOR_GRAY2RGB)
    code = cv2.COLOR_BGRA2RGB if array.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(array, code)


def read_mask(path: Path | str) -> np.ndarray:
    """Read a picture of class indices as uint8 [H, W].

    A palette PNG yields its indices, not its colours. Three equal channels are read as one.

    Raises:
        InputError: The file cannot be read, holds colours, or an index above 255.
    """
    path = Path(path)
    data, scale = _indices_of_png(_read_bytes(path))
    array = _decode(data, path)
    if array.ndim == 3:
        colours = array[..., :3] if array.shape[2] >= 3 else array[..., :1]
        if (colours != colours[..., :1]).any():
            raise InputError(
                f"{path}: a colour picture, expected one channel of class indices; "
                "convert colours to indices first"
            )
        array = np.ascontiguousarray(colours[..., 0])
    if array.dtype.kind not in "ui" or array.max(initial=0) > 255:
        raise InputError(
            f"{path}: values of type {array.dtype} up to {array.max(initial=0)}, expected class "
            "indices from 0 to 255; write the mask as 8-bit PNG"
        )
    return (array // scale).astype(np.uint8)


def _read_bytes(path: Path) -> bytes:
    """A file's content, which must be there and not be empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise InputError(f"{path}: the file is empty (0 bytes); fetch or record it again")
    return data


def _decode(data: bytes, path: Path | str) -> np.ndarray:
    """The pixels as stored (BGR order), with what decoders let pass as whole refused."""
    if _cut_off(data):
        raise InputError(
            f"{path}: the file ends early ({len(data)} bytes); fetch or record it again"
        )
    flags = cv2.IMREAD_UNCHANGED
    if data[:2] == b"\xff\xd8":  # UNCHANGED would leave CMYK to chance
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        array = None
    if array is None or array.size == 0:
        raise InputError(
            f"{path}: not a picture that can be decoded; expected a whole "
            f"{', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))} file"
        )
    return array


def _cut_off(data: bytes) -> bool:
    """Whether a JPEG, PNG, WebP or BMP lacks its end, which OpenCV would paint over."""
    if data[:2] == b"\xff\xd8":
        return data.find(b"\xff\xd9", _start_of_scan(data)) < 0
    if data[:8] == _PNG:
        return data.rfind(b"IEND") < 0
    if data[:4] == b"RIFF":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if data[:2] == b"BM":
        return len(data) < int.from_bytes(data[2:6], "little")
    return False


def _start_of_scan(data: bytes) -> int:
    """Offset of a JPEG's pixel data: past headers, where thumbnails have ends of their own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return at
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)


def _indices_of_png(data: bytes) -> tuple[bytes, int]:
    """A palette PNG rewritten as greyscale, so that decoders return indices.

    Returns:
        The file's bytes, and what decoded values are to be divided by: greyscale of fewer than
        8 bits is stretched to 0..255 on decoding.
    """
    if data[:8] != _PNG or len(data) < 33 or data[25] not in (0, 3) or data[24] > 8:
        return data, 1
    scale = 255 // ((1 << data[24]) - 1)
    if data[25] == 0:
        return data, scale
    kept, at = [_PNG], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            body = body[:9] + b"\x00" + body[10:]
            kept.append(data[at : at + 8] + body + zlib.crc32(kind + body).to_bytes(4, "big"))
        elif kind in (b"IDAT", b"IEND"):
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept), scale
