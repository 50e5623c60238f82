"""Pictures of a board through a lens that is known exactly, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from calibration.camera.boards import board_points
from calibration.camera.models import MODELS
from calibration.camera.views import View

HEIGHT, WIDTH = 480, 640
SQUARE = 0.025
_FINE = 24  # texture pixels per square
_OVER = 2  # samples per pixel and direction


@dataclass
class Camera:
    """A lens whose rays are worked out here, by iteration on the model's own formula."""

    model: str
    K: np.ndarray
    D: np.ndarray
    size: tuple[int, int] = (HEIGHT, WIDTH)
    rays: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        height, width = self.size
        at = (
            (np.arange(height * _OVER) + 0.5) / _OVER - 0.5,
            (np.arange(width * _OVER) + 0.5) / _OVER - 0.5,
        )
        y, x = np.meshgrid(*at, indexing="ij")
        x, y = (x - self.K[0, 2]) / self.K[0, 0], (y - self.K[1, 2]) / self.K[1, 1]
        undo = self._fisheye if self.model == "equidistant" else self._pinhole
        self.rays = np.stack([*undo(x, y), np.ones_like(x)], axis=-1)

    def _fisheye(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = np.linspace(0, 1.5, 20000)
        bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(self.D)))
        r = np.maximum(np.hypot(x, y), 1e-12)
        scale = np.tan(np.interp(r, bent, theta)) / r
        return x * scale, y * scale

    def _pinhole(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*self.D, 0, 0, 0)[:8]
        u, v = x.copy(), y.copy()
        for _ in range(25):
            r2 = u * u + v * v
            radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
            u, v = (
                (x - 2 * p1 * u * v - p2 * (r2 + 2 * u * u)) / radial,
                (y - p1 * (r2 + 2 * v * v) - 2 * p2 * u * v) / radial,
            )
        return u, v


def chessboard(columns: int, rows: int) -> np.ndarray:
    """Texture uint8 of a board with so many inner corners and a white margin of one square."""
    y, x = np.indices(((rows + 1) * _FINE, (columns + 1) * _FINE)) // _FINE
    return np.pad(((x + y) % 2 * 255).astype(np.uint8), _FINE, constant_values=255)


def charuco(columns: int, rows: int, dictionary: int) -> np.ndarray:
    """Texture uint8 of a ChArUco board of so many squares, with the same margin."""
    board = cv2.aruco.CharucoBoard(
        (columns, rows), 1.0, 0.75, cv2.aruco.getPredefinedDictionary(dictionary)
    )
    drawn = board.generateImage((columns * _FINE, rows * _FINE))
    return np.pad(drawn, _FINE, constant_values=255)


def photo(
    camera: Camera,
    texture: np.ndarray,
    rvec: np.ndarray,
    tvec: np.ndarray,
    seed: int = 0,
    blur: float = 0.6,
    noise: float = 2.0,
) -> np.ndarray:
    """The board in space, uint8 [H, W, 3], before a grey wall.

    Args:
        camera: Whose rays are followed.
        texture: From `chessboard` or `charuco`.
        rvec: Rotation of the board.
        tvec: Metres from the camera to the board's first inner corner.
        seed: Of the noise.
        blur: Gaussian, in pixels.
        noise: Standard deviation, in grey values.
    """
    rotation = cv2.Rodrigues(np.asarray(rvec, np.float64))[0]
    plane = np.column_stack([rotation[:, :2], np.asarray(tvec, np.float64)])
    hit = camera.rays @ np.linalg.inv(plane).T
    with np.errstate(divide="ignore", invalid="ignore"):
        cells = hit[..., :2] / hit[..., 2:] / SQUARE
    at = ((cells + 2) * _FINE - 0.5).astype(np.float32)
    at[~(hit[..., 2] > 0)] = -1e4
    x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
    grey = cv2.remap(texture, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, (120,))
    grey = cv2.resize(
        grey.astype(np.float32) * 0.8 + 20, camera.size[::-1], interpolation=cv2.INTER_AREA
    )
    if blur:
        grey = cv2.GaussianBlur(grey, (0, 0), blur)
    grey += np.random.default_rng(seed).normal(0, noise, grey.shape)
    return np.repeat(np.clip(np.round(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def poses(
    count: int,
    corners: tuple[int, int],
    distance: float,
    seed: int = 0,
    tilt: float = 0.6,
    reach: tuple[float, float] = (0.3, 0.22),
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rotations and translations of a board that wanders over the picture.

    Args:
        count: How many.
        corners: Inner corners in columns and rows.
        distance: Metres, about.
        seed: Of everything.
        tilt: Most radians about each axis in the plane.
        reach: How far the board's middle wanders, as a share of its distance.
    """
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        rvec = np.array([*rng.uniform(-tilt, tilt, 2), rng.uniform(-0.3, 0.3) * (tilt > 0)])
        z = distance * rng.uniform(0.8, 1.3)
        place = np.array([(index % 3 - 1), (index // 3 % 3 - 1)]) * reach * z
        place += rng.uniform(-0.04, 0.04, 2) * z
        middle = np.array([(corners[0] - 1) / 2, (corners[1] - 1) / 2, 0]) * SQUARE
        rotation = cv2.Rodrigues(rvec)[0]
        found.append((rvec, np.array([*place, z]) - rotation @ middle))
    return found


def ideal_views(
    camera: Camera,
    places: list[tuple[np.ndarray, np.ndarray]],
    noise: float = 0.1,
    corners: tuple[int, int] = (9, 6),
) -> list[View]:
    """Views whose corners are projected, with Gaussian noise in pixels, instead of found."""
    rng = np.random.default_rng(1)
    cells = np.indices(corners[::-1])[::-1].reshape(2, -1).T
    points = board_points(cells, SQUARE)
    views = []
    for index, pose in enumerate(places):
        pixels = MODELS[camera.model].project(points, pose, camera.K, camera.D).pixels
        pixels = (pixels + rng.normal(0, noise, pixels.shape)).astype(np.float32)
        views.append(View(f"view{index:02}", cells, points, pixels, 2.0, b""))
    return views
