"""From the raw camera image to the network's input, and back.

Lens undistortion, letterbox or stretch are one precomputed mapping. Points use continuous pixel
coordinates in which pixel i covers [i, i + 1): a box over a whole image of width W is 0 to W.
"""

from __future__ import annotations

import cv2
import numpy as np

from edge_runtime.errors import InputError
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
        self._halfway, self._interpolation = _shrinking(raw_size, (inner_h, inner_w))
        self._mask_maps: dict[tuple[int, ...], tuple[np.ndarray, ...]] = {}
        self._lens = _Lens(camera, raw_size) if camera else None
        self._remap = self._input_maps() if self._lens else None

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
        if self._remap:
            border = (PADDING,) * 3
            cv2.remap(image, *self._remap, cv2.INTER_LINEAR, inner, cv2.BORDER_CONSTANT, border)
        elif inner.shape == image.shape:
            np.copyto(inner, image)
        else:
            if self._halfway is not None:
                size = (self._halfway.shape[1], self._halfway.shape[0])
                image = cv2.resize(image, size, dst=self._halfway, interpolation=cv2.INTER_AREA)
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
        height, width = self.raw_size
        corners = boxes.reshape(-1, 2, 2).astype(np.float64)
        corners = (corners - self._offset) / self._scale
        if self._lens is not None and len(corners):
            outline = self._lens.distort(_outlines(corners))
            corners = np.stack([outline.min(axis=1), outline.max(axis=1)], axis=1)
        return np.clip(corners, 0, [width, height]).reshape(-1, 4).astype(np.float32)

    def mask_to_raw(self, mask: np.ndarray) -> np.ndarray:
        """Enlarge a class mask to the raw image by nearest neighbour.

        Args:
            mask: uint8 [h, w] covering the network's input, of any size.

        Returns:
            uint8 [H, W] of the raw size, a new array.
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

    def _input_maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw pixel to read for each pixel of the inner part of the network's input."""
        rows, columns = self._inner
        size = rows.stop - rows.start, columns.stop - columns.start
        points = _pixel_centres(size) / self._scale
        assert self._lens is not None
        raw = self._lens.distort(points.reshape(1, -1, 2)).reshape(*size, 2) - 0.5
        raw = raw.astype(np.float32)
        return cv2.convertMaps(raw[..., 0], raw[..., 1], cv2.CV_16SC2)

    def _output_maps(self, mask_size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Mask pixel to read for each raw pixel; out of range where the view does not reach."""
        points = _pixel_centres(self.raw_size)
        if self._lens is not None:
            points = self._lens.undistort(points.reshape(1, -1, 2)).reshape(points.shape)
        points = points * self._scale + self._offset
        height, width = self.net_size
        index = np.floor(points * [mask_size[1] / width, mask_size[0] / height])
        index = np.clip(index, -1, 32000).astype(np.float32)
        return np.ascontiguousarray(index[..., 0]), np.ascontiguousarray(index[..., 1])


class _Lens:
    """Lens model between raw pixels and those of an undistorted image of the same size.

    The undistorted image's camera matrix is chosen so that it holds no pixel without content
    (OpenCV's `alpha = 0`, `balance = 0`); the outermost raw pixels may then lie outside of it.
    """

    def __init__(self, camera: CameraSpec, raw_size: tuple[int, int]) -> None:
        height, width = raw_size
        ratio = width / camera.width
        if abs(camera.height * ratio - height) > 1:
            raise InputError(
                f"the camera was calibrated at {camera.width}x{camera.height}, but the image is "
                f"{width}x{height}: the aspect differs; calibrate again or crop as then"
            )
        self.fisheye = camera.model == "equidistant"
        self.matrix = np.array(camera.K, np.float64).reshape(3, 3)
        self.matrix[:2] *= ratio
        self.distortion = np.array(camera.D, np.float64)
        if self.fisheye:
            self.view = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
                self.matrix, self.distortion, (width, height), np.eye(3), balance=0.0
            )
        else:
            self.view, _ = cv2.getOptimalNewCameraMatrix(
                self.matrix, self.distortion, (width, height), 0
            )

    def distort(self, points: np.ndarray) -> np.ndarray:
        """Undistorted pixels [N, M, 2] to raw pixels [N, M, 2]."""
        focal, centre = self.view[[0, 1], [0, 1]], self.view[:2, 2]
        rays = (points.reshape(-1, 1, 2) - 0.5 - centre) / focal
        if self.fisheye:
            raw = cv2.fisheye.distortPoints(rays, self.matrix, self.distortion)
        else:
            rays = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
            zero = np.zeros(3)
            raw, _ = cv2.projectPoints(rays, zero, zero, self.matrix, self.distortion)
        return raw.reshape(points.shape) + 0.5

    def undistort(self, points: np.ndarray) -> np.ndarray:
        """Raw pixels [N, M, 2] to undistorted pixels [N, M, 2]."""
        undistort = cv2.fisheye.undistortPoints if self.fisheye else cv2.undistortPoints
        flat = points.reshape(-1, 1, 2) - 0.5
        view = undistort(flat, self.matrix, self.distortion, R=np.eye(3), P=self.view)
        return view.reshape(points.shape) + 0.5


def _shrinking(raw_size: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray | None, int]:
    """How to shrink without aliasing: an array for a first step, if any, and the last step's way.

    Averaging over whole blocks is several times faster than over fractions of pixels, so a
    shrink by 2.2 is one by 2 and a bilinear one by 1.1.
    """
    if max(raw_size[0] / size[0], raw_size[1] / size[1]) <= 2:
        return None, _LINEAR
    rows, columns = (max(1, raw // net) for raw, net in zip(raw_size, size, strict=True))
    if raw_size[0] % rows or raw_size[1] % columns:
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
