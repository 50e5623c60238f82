"""From the raw camera image to the network's input, and back.

Lens undistortion, letterbox or stretch are one precomputed mapping; a shrink by two or more
averages over whole blocks of pixels first. Points use continuous pixel coordinates in which pixel
i covers [i, i + 1): a box over a whole image of width W is 0 to W.
"""

from __future__ import annotations

import cv2
import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.lens import Lens
from edge_runtime.manifest import CameraSpec

PADDING = 114  # grey of the letterbox's bars
UNSEEN = 255  # mask value of raw pixels outside the network's view
_LINEAR = int(cv2.INTER_LINEAR)
_EDGE_POINTS = 5  # points per box side that are carried through the lens model


class Geometry:
    """The mapping between raw images of one size and the network's input.

    Args:
        raw_size: (height, width) of the raw image in pixels.
        net_size: (height, width) of the network's input in pixels.
        resize: "stretch" fills the input; "letterbox" keeps the aspect and pads with grey.
        camera: Intrinsics, if the lens is to be undistorted first. Its aspect must be the raw
            image's; a different resolution is scaled.
    """

    def __init__(
        self,
        raw_size: tuple[int, int],
        net_size: tuple[int, int],
        resize: str = "stretch",
        camera: CameraSpec | None = None,
    ) -> None:
        if resize not in ("stretch", "letterbox"):
            raise InputError(f"resize '{resize}' is unknown; expected 'stretch' or 'letterbox'")
        if min(*raw_size, *net_size) < 1:
            raise InputError(f"image size {raw_size} to {net_size}: sizes must be positive")
        self.raw_size = raw_height, raw_width = raw_size
        self.net_size = height, width = net_size
        if resize == "letterbox":
            scale = min(height / raw_height, width / raw_width)
            inner_h = min(height, max(1, round(raw_height * scale)))
            inner_w = min(width, max(1, round(raw_width * scale)))
        else:
            inner_h, inner_w = height, width
        top, left = (height - inner_h) // 2, (width - inner_w) // 2
        self._inner = slice(top, top + inner_h), slice(left, left + inner_w)
        self._padded = (inner_h, inner_w) != (height, width)
        self._scale = np.array([inner_w / raw_width, inner_h / raw_height])  # x, y
        self._offset = np.array([left, top], np.float64)
        self._size = np.array([raw_width, raw_height], np.float64)
        lens = self._lens = Lens(camera, raw_size) if camera else None
        self._halfway, self._interpolation = _shrinking(raw_size, (inner_h, inner_w), lens)
        self._mask_maps: dict[tuple[int, ...], tuple[np.ndarray, ...]] = {}
        self._remap = self._input_maps(lens) if lens else None

    def to_network(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Fit a raw image into the network's input.

        Args:
            image: uint8 [H, W, 3] of the raw size.
            out: uint8 [h, w, 3] to write into; a new array if None.

        Returns:
            uint8 [h, w, 3]: `out`, filled.
        """
        if image.shape != (*self.raw_size, 3) or image.dtype != np.uint8:
            raise InputError(
                f"image is {image.dtype} {image.shape}, expected uint8 {(*self.raw_size, 3)}"
            )
        if out is None:
            out = np.empty((*self.net_size, 3), np.uint8)
        if self._padded:
            rows, columns = self._inner
            out[: rows.start] = out[rows.stop :] = PADDING
            out[:, : columns.start] = out[:, columns.stop :] = PADDING
        inner = out[self._inner]
        if self._halfway is not None:
            size = (self._halfway.shape[1], self._halfway.shape[0])
            image = cv2.resize(image, size, dst=self._halfway, interpolation=cv2.INTER_AREA)
        if self._remap:
            border = (PADDING,) * 3
            cv2.remap(image, *self._remap, cv2.INTER_LINEAR, inner, cv2.BORDER_CONSTANT, border)
        elif inner.shape == image.shape:
            np.copyto(inner, image)
        else:
            size = (inner.shape[1], inner.shape[0])
            cv2.resize(image, size, dst=inner, interpolation=self._interpolation)
        return out

    def boxes_to_raw(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes to the raw image and clip them to it.

        Args:
            boxes: float [N, 4], xyxy in network pixels.

        Returns:
            float32 [N, 4], xyxy in raw pixels. Through a lens it is the box around the bent one.
        """
        corners = (boxes.reshape(-1, 2, 2) - self._offset) / self._scale
        if self._lens is not None and len(corners):
            corners = np.clip(corners, 0, self._size)  # a lens model need not hold beyond
            outline = self._lens.distort(_outlines(corners))
            corners = np.stack([outline.min(axis=1), outline.max(axis=1)], axis=1)
        corners = np.minimum(np.maximum(corners, 0), self._size)
        return corners.reshape(-1, 4).astype(np.float32)

    def mask_to_raw(self, mask: np.ndarray) -> np.ndarray:
        """Enlarge a class mask to the raw image by nearest neighbour.

        Args:
            mask: uint8 [h, w] covering the network's input, of any size.

        Returns:
            uint8 [H, W] of the raw size, a new array; `UNSEEN` where a lens shows the network
            nothing.
        """
        maps = self._mask_maps.get(mask.shape)
        if maps is None:
            make = self._mask_rows if self._lens is None else self._output_maps
            maps = self._mask_maps[mask.shape] = make(mask.shape)
        if self._lens is None:
            rows, columns, wide = maps
            np.take(mask, columns, axis=1, out=wide, mode="clip")
            return wide.take(rows, axis=0)
        border = (UNSEEN,) * 4
        x, y = maps
        return cv2.remap(mask, x, y, cv2.INTER_NEAREST, None, cv2.BORDER_CONSTANT, border)

    def _mask_rows(self, mask_size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Mask row of each raw row, mask column of each raw column, and memory in between."""
        per_pixel = np.array(mask_size[::-1]) / self.net_size[::-1]
        columns, rows = (
            np.floor(((np.arange(size) + 0.5) * scale + offset) * step).astype(np.intp)
            for size, scale, offset, step in zip(
                self.raw_size[::-1], self._scale, self._offset, per_pixel, strict=True
            )
        )
        wide = np.empty((mask_size[0], len(columns)), np.uint8)
        return np.clip(rows, 0, mask_size[0] - 1), np.clip(columns, 0, mask_size[1] - 1), wide

    def _input_maps(self, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
        """Pixel to read, of the image or of the halfway one, for each of the inner part."""
        rows, columns = self._inner
        size = rows.stop - rows.start, columns.stop - columns.start
        source = lens.distort(_pixel_centres(size) / self._scale)
        if self._halfway is not None:
            height, width = self._halfway.shape[:2]
            source *= np.array([width, height]) / self.raw_size[::-1]
        source = (source - 0.5).astype(np.float32)
        return cv2.convertMaps(source[..., 0], source[..., 1], cv2.CV_16SC2)

    def _output_maps(self, mask_size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Mask pixel to read for each raw pixel; -1 where the view does not reach."""
        assert self._lens is not None
        points = self._lens.undistort(_pixel_centres(self.raw_size))
        inside = np.all((points >= 0) & (points < self.raw_size[::-1]), axis=-1)  # NaN never is
        points = points * self._scale + self._offset
        height, width = self.net_size
        index = np.floor(points * [mask_size[1] / width, mask_size[0] / height])
        index = np.where(np.expand_dims(inside, -1), index, -1).astype(np.float32)
        return np.ascontiguousarray(index[..., 0]), np.ascontiguousarray(index[..., 1])


def _shrinking(
    raw_size: tuple[int, int], size: tuple[int, int], lens: Lens | None
) -> tuple[np.ndarray | None, int]:
    """How to shrink without aliasing: an array for a first step, if any, and the last step's way.

    Averaging over whole blocks is several times faster than over fractions of pixels, so a
    shrink by 2.2 is one by 2 and a bilinear one by 1.1. Through a lens the last step is a bilinear
    remap, which needs the first one also where the blocks are not whole.
    """
    shrink = np.array(raw_size) / size
    if lens is not None:
        shrink = (
            shrink * (np.diag(lens.matrix) / np.diag(lens.view))[[1, 0]]
        )  # in the picture's middle
    if lens is None and shrink.max() <= 2:
        return None, _LINEAR
    rows, columns = np.clip(shrink, 1, raw_size).astype(int).tolist()
    if max(rows, columns) == 1:
        return None, _LINEAR
    if lens is None and (raw_size[0] % rows or raw_size[1] % columns):
        return None, cv2.INTER_AREA
    return np.empty((raw_size[0] // rows, raw_size[1] // columns, 3), np.uint8), _LINEAR


def _pixel_centres(size: tuple[int, int]) -> np.ndarray:
    """float64 [h, w, 2]: x, y of every pixel's centre."""
    x, y = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    return np.stack([x, y], axis=-1)


def _outlines(corners: np.ndarray) -> np.ndarray:
    """Points along the sides of boxes: [N, 2, 2] corners to [N, 4 * _EDGE_POINTS, 2]."""
    step = np.linspace(0, 1, _EDGE_POINTS)
    zero, one = np.zeros_like(step), np.ones_like(step)
    unit = np.stack(
        [np.concatenate([step, step, zero, one]), np.concatenate([zero, one, step, step])], -1
    )
    return corners[:, None, 0] + unit * (corners[:, None, 1] - corners[:, None, 0])
