"""Painting simple solids in perspective: a pinhole camera and a painter that keeps masks.

World coordinates are metres: x right, y up, z forward; the floor is y = 0. Solids are painted far
to near, so that nearer ones cover farther ones in picture and masks alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import cv2
import numpy as np

Colour = np.ndarray  # float64 [3] RGB, 0 to 255
_SUBPIXEL = 4  # fractional bits of polygon corners


class Camera:
    """A pinhole camera.

    Args:
        size: Picture (height, width) in pixels.
        position: float [3], metres.
        yaw: Turn to the right, radians.
        pitch: Tilt downwards, radians.
        roll: Turn about the optical axis, radians.
        field_of_view: Horizontal, radians.
    """

    def __init__(
        self,
        size: tuple[int, int],
        position: np.ndarray,
        yaw: float,
        pitch: float,
        roll: float,
        field_of_view: float,
    ) -> None:
        self.size, self.position = size, np.asarray(position, float)
        self.focal = size[1] / 2 / np.tan(field_of_view / 2)
        sy, cy, sp, cp = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
        forward = np.array([sy * cp, -sp, cy * cp])
        right = np.array([cy, 0.0, -sy])
        up = np.cross(forward, right)
        right, up = (
            np.cos(roll) * right + np.sin(roll) * up,
            np.cos(roll) * up - np.sin(roll) * right,
        )
        self.axes = np.stack([right, up, forward])

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [N, 2] and depths [N] of world points [N, 3]."""
        local = (np.asarray(points) - self.position) @ self.axes.T
        depth = np.maximum(local[:, 2], 1e-3)
        scale = self.focal / depth
        centre = np.array([self.size[1], self.size[0]]) / 2
        return centre + local[:, :2] * np.stack([scale, -scale], 1), local[:, 2]

    def rays(self) -> np.ndarray:
        """float32 [H, W, 3]: world directions through pixel centres, of unit depth."""
        height, width = self.size
        x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / self.focal
        y = (height / 2 - np.arange(height, dtype=np.float32) - 0.5) / self.focal
        planes = np.empty((3, height, width), np.float32)  # planar is faster to work on
        for plane, (right, up, forward) in zip(planes, self.axes.T.astype(np.float32), strict=True):
            np.add(x[None] * right, y[:, None] * up + forward, out=plane)
        return np.moveaxis(planes, 0, 2)


class Painter:
    """Paints solids into a picture and their number into an instance map.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        instances: uint8 [H, W], number of the object seen at a pixel, 0 for none.
    """

    near = 0.15  # metres; faces with a corner nearer than this are left out

    def __init__(self, camera: Camera, image: np.ndarray) -> None:
        self.camera, self.image = camera, image
        self.instances = np.zeros(image.shape[:2], np.uint8)
        self.number = 0
        self.light = np.array([0.3, 0.8, -0.5])
        self.brightness = np.ones(3)
        self.ambient = 0.5

    def shade(self, colour: Colour, normal: np.ndarray) -> Colour:
        """A matt surface's colour under the light (Lambert)."""
        diffuse = max(float(normal @ self.light), 0.0)
        lit = colour * self.brightness * (self.ambient + (1 - self.ambient) * diffuse)
        return np.minimum(lit, 255.0)

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        """Fill a convex outline of pixels [N, 2] with a colour as it stands."""
        corners = ((points - 0.5) * (1 << _SUBPIXEL)).clip(-(1 << 17), 1 << 17).astype(np.int32)
        shade = colour.tolist()
        cv2.fillConvexPoly(self.image, corners, shade, cv2.LINE_8, _SUBPIXEL)
        cv2.fillConvexPoly(self.instances, corners, self.number, cv2.LINE_8, _SUBPIXEL)

    def face(self, corners: np.ndarray, texture: np.ndarray) -> None:
        """A quadrangle [4, 3] (top left, top right, bottom right, bottom left seen from outside)
        with a texture uint8 [h, w, 3]; one that is turned away is left out."""
        normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
        if (self.camera.position - corners.mean(0)) @ normal <= 0:
            return
        pixels, depth = self.camera.project(corners)
        if depth.min() < self.near:
            return
        shaded = self.shade(np.full(3, 255.0), normal / (np.linalg.norm(normal) + 1e-9)) / 255
        height, width = self.image.shape[:2]
        x1, y1 = np.maximum(np.floor(pixels.min(0)).astype(int) - 1, 0)
        x2, y2 = np.minimum(np.ceil(pixels.max(0)).astype(int) + 2, [width, height])
        if x2 <= x1 or y2 <= y1:
            return
        h, w = texture.shape[:2]
        source = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32) - 0.5
        target = (pixels - [x1, y1] - 0.5).astype(np.float32)
        if cv2.contourArea(target) < 0.5:
            return
        step = max(1, min(4, int(np.sqrt(w * h / max(cv2.contourArea(target), 1.0)))))
        if step > 1:  # as mipmaps: average before shrinking
            texture = cv2.blur(texture, (step, step))
        matrix = cv2.getPerspectiveTransform(source, target)
        lit = np.clip(texture * shaded, 0, 255).astype(np.uint8)
        drawn = cv2.warpPerspective(
            lit, matrix, (int(x2 - x1), int(y2 - y1)), borderMode=cv2.BORDER_REPLICATE
        )
        inside = np.zeros(drawn.shape[:2], np.uint8)
        corners_px = np.round(target * (1 << _SUBPIXEL)).astype(np.int32)
        cv2.fillConvexPoly(inside, corners_px, 1, cv2.LINE_8, _SUBPIXEL)
        cv2.copyTo(drawn, inside, self.image[y1:y2, x1:x2])
        self.instances[y1:y2, x1:x2][inside > 0] = self.number

    def prism(
        self,
        base: np.ndarray,
        size: Sequence[float],
        yaw: float,
        texture: Callable[[str], np.ndarray],
    ) -> None:
        """An upright cuboid.

        Args:
            base: Centre of its lower face.
            size: Width, height, depth in metres.
            yaw: Turn about the vertical, radians.
            texture: From "side", "end" or "top" to uint8 [h, w, 3].
        """
        w, h, d = size[0] / 2, size[1], size[2] / 2
        c, s = np.cos(yaw), np.sin(yaw)
        flat = np.array([[-w, -d], [w, -d], [w, d], [-w, d]]) @ np.array([[c, -s], [s, c]])
        low = np.column_stack([flat[:, 0], np.zeros(4), flat[:, 1]]) + base
        high = low + [0, h, 0]
        self.face(np.array([high[3], high[2], high[1], high[0]]), texture("top"))
        for i, kind in enumerate(("side", "end", "side", "end")):
            j = (i + 1) % 4
            self.face(np.array([high[i], high[j], low[j], low[i]]), texture(kind))

    def lathe(
        self, base: np.ndarray, rings: Sequence[tuple[float, float, Colour]], sectors: int = 16
    ) -> None:
        """A solid of revolution about the vertical.

        Args:
            base: Point on the axis from which ring heights count.
            rings: From bottom to top: radius, height in metres, colour of the band above.
            sectors: Facets around.
        """
        angle = np.arange(sectors + 1) * (2 * np.pi / sectors)
        around = np.stack([np.sin(angle), np.cos(angle)], 1)
        radii = np.array([r for r, _, _ in rings])
        heights = np.array([y for _, y, _ in rings])
        points = np.empty((len(rings), sectors + 1, 3))
        points[..., 0] = base[0] + radii[:, None] * around[:, 0]
        points[..., 1] = base[1] + heights[:, None]
        points[..., 2] = base[2] + radii[:, None] * around[:, 1]
        flat, depth = self.camera.project(points.reshape(-1, 3))
        if depth.min() < self.near:
            return
        pixels = flat.reshape(len(rings), sectors + 1, 2)
        middle = angle[:-1] + np.pi / sectors
        outward = np.stack([np.sin(middle), np.zeros(sectors), np.cos(middle)], 1)
        for k in range(len(rings) - 1):
            rise, shrink = heights[k + 1] - heights[k], radii[k] - radii[k + 1]
            normals = outward * rise + np.array([0.0, shrink, 0.0])
            normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
            centre = (points[k, :-1] + points[k + 1, 1:]) / 2
            seen = ((self.camera.position - centre) * normals).sum(1) > 0
            for i in np.flatnonzero(seen):
                quad = np.array(
                    [pixels[k, i], pixels[k, i + 1], pixels[k + 1, i + 1], pixels[k + 1, i]]
                )
                self.polygon(quad, self.shade(rings[k][2], normals[i]))
        if radii[-1] > 0 and self.camera.position[1] > base[1] + heights[-1]:
            self.polygon(pixels[-1, :-1], self.shade(rings[-1][2], np.array([0.0, 1.0, 0.0])))

    def ball(self, centre: np.ndarray, radius: float, colour: Colour) -> None:
        """A sphere."""
        steps = np.linspace(-np.pi / 2, np.pi / 2, 7)
        rings = [(float(radius * np.cos(a)), float(radius * np.sin(a)), colour) for a in steps]
        self.lathe(centre, rings, 12)

    def limb(
        self, start: np.ndarray, end: np.ndarray, radii: Sequence[float], colour: Colour
    ) -> None:
        """A rounded rod between two points, shaded across its width in four strips."""
        pixels, depth = self.camera.project(np.array([start, end]))
        if depth.min() < self.near:
            return
        half = np.array(radii) * self.camera.focal / depth
        along = pixels[1] - pixels[0]
        along = along / (np.linalg.norm(along) + 1e-9)
        across = np.array([-along[1], along[0]])
        right, up, forward = self.camera.axes
        for point, r in zip(pixels, half, strict=True):
            turn = np.linspace(0, 2 * np.pi, 13)[:-1]
            outline = point + r * np.stack([np.cos(turn), np.sin(turn)], 1)
            self.polygon(outline, self.shade(colour, -forward))
        edges = np.array([-1.0, -0.55, 0.0, 0.55, 1.0])
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            a, b = across * low, across * high
            quad = np.array(
                [
                    pixels[0] + a * half[0],
                    pixels[0] + b * half[0],
                    pixels[1] + b * half[1],
                    pixels[1] + a * half[1],
                ]
            )
            offset = across * (low + high) / 2
            depthwise = np.sqrt(max(1 - float(offset @ offset), 0.0))
            normal = right * offset[0] - up * offset[1] - forward * depthwise
            self.polygon(quad, self.shade(colour, normal))


@functools.cache
def noise_bank() -> np.ndarray:
    """float32 [8, 256, 256]: tileable noise of several scales, about -1 to 1, always the same."""
    rng = np.random.default_rng(20240)
    bank = np.empty((8, 256, 256), np.float32)
    for k in range(8):
        total = np.zeros((256, 256), np.float32)
        for cells in (4, 16, 64, 256):
            grid = rng.standard_normal((cells, cells)).astype(np.float32)
            grid = np.pad(grid, 2, mode="wrap")
            step = 256 // cells
            large = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
            total += large[2 * step : 2 * step + 256, 2 * step : 2 * step + 256] / (cells**0.15)
        bank[k] = total / total.std() / 2
    return bank


def noise_texture(
    rng: np.random.Generator, colour: Colour, strength: float, size: tuple[int, int] = (48, 48)
) -> np.ndarray:
    """uint8 [h, w, 3]: a colour with blotches, its own every time."""
    bank = noise_bank()
    y, x = rng.integers(0, 256 - size[0] + 1), rng.integers(0, 256 - size[1] + 1)
    patch = bank[rng.integers(len(bank)), y : y + size[0], x : x + size[1], None]
    return np.clip(colour * (1 + strength * patch), 0, 255).astype(np.uint8)


def random_colour(
    rng: np.random.Generator, choices: Sequence[tuple[int, int, int]], spread: float = 18
) -> Colour:
    """One of `choices`, made a little different."""
    base = np.asarray(choices[int(rng.integers(len(choices)))], np.float64)
    return np.clip(base + rng.normal(0, spread, 3), 8, 247)
