"""The room of a synthetic scene: its shape, lamps and surfaces, cast a ray a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from distill.data.drawing import Camera, noise_bank, random_colour
from distill.data.props import GREYS, PAINTS, Prop

FLOOR, WALL, CEILING, SHELF, DOOR = range(5)
_TILE = 256  # texels of a room texture
_TILE_METRES = 2.0


@dataclass(frozen=True, slots=True)
class Style:
    """What kind of place: ranges of metres and counts."""

    width: tuple[float, float]
    length: tuple[float, float]
    height: tuple[float, float]
    objects: tuple[int, int]
    shelves: float  # chance per side wall
    doors: tuple[int, int]
    walls: tuple[tuple[int, int, int], ...]


STYLES = {
    "corridor": Style(
        (2.6, 4.2), (9, 22), (2.4, 3.0), (2, 6), 0.15, (1, 4),
        ((225, 222, 210), (205, 215, 220), (190, 200, 180), (170, 165, 160)),
    ),
    "workcell": Style(
        (5.5, 10.0), (6, 11), (3.0, 4.5), (5, 10), 0.6, (0, 2),
        ((150, 155, 160), (200, 200, 195), (120, 130, 140), (185, 170, 150)),
    ),
}  # fmt: skip


@dataclass
class Room:
    """A cuboid room; x from -width/2 to width/2, z from -2 to length."""

    width: float
    length: float
    height: float
    lamps: np.ndarray  # [M, 3] metres
    power: np.ndarray  # [M]
    ambient: float
    tint: np.ndarray  # [3]
    doors: list[tuple[float, float, float, np.ndarray]]  # sign of x, z, width, colour

    def light_at(self, points: np.ndarray) -> np.ndarray:
        """Brightness [...] at points [..., 3]: ambient and lamps that fade with distance."""
        total = np.full(points.shape[:-1], self.ambient, np.float32)
        for lamp, power in zip(self.lamps, self.power, strict=True):
            x, y, z = (points[..., k] - lamp[k].astype(points.dtype) for k in range(3))
            total += power / (1 + (x * x + y * y + z * z) / 6)
        return total


def build_room(rng: np.random.Generator, style: Style) -> Room:
    """A room of a style, with lamps and doors."""
    width, length = rng.uniform(*style.width), rng.uniform(*style.length)
    height = rng.uniform(*style.height)
    count = int(rng.integers(1, 5))
    lamps = np.column_stack(
        [
            rng.uniform(-0.35, 0.35, count) * width,
            np.full(count, height - 0.05),
            rng.uniform(0.05, 0.95, count) * length,
        ]
    )
    warm = rng.normal(0, 0.07)
    doors = [
        (
            float(rng.choice([-1, 1])),
            float(rng.uniform(1.5, length - 1.2)),
            float(rng.uniform(0.8, 1.2)),
            random_colour(rng, [(120, 82, 50), *PAINTS, *GREYS]),
        )
        for _ in range(rng.integers(style.doors[0], style.doors[1] + 1))
    ]
    tint = np.array([1 + warm, 1 + rng.normal(0, 0.02), 1 - warm])
    power, ambient = rng.uniform(0.4, 1.1, count), float(rng.uniform(0.25, 0.5))
    return Room(width, length, height, lamps, power, ambient, tint, doors)


def draw_room(
    rng: np.random.Generator,
    room: Room,
    camera: Camera,
    places: list[tuple[float, np.ndarray, float, Prop]],
) -> tuple[np.ndarray, np.ndarray]:
    """Cast a ray a pixel to the room's surfaces. Returns the picture and the stuff mask."""
    rays = camera.rays()
    limits = np.array([room.width / 2, room.height, room.length], np.float32)
    lows = np.array([-room.width / 2, 0, -2], np.float32)
    origin = camera.position.astype(np.float32)
    rays = np.where(np.abs(rays) < 1e-5, np.float32(1e-5), rays)
    reach = (np.where(rays > 0, limits, lows) - origin) / rays  # [H, W, 3] per axis
    distance = np.minimum(np.minimum(reach[..., 0], reach[..., 1]), reach[..., 2])
    axis = np.where(reach[..., 0] == distance, 0, np.where(reach[..., 1] == distance, 1, 2))
    points = origin + rays * distance[..., None]
    upward = rays[..., 1] > 0
    stuff = np.where(axis == 1, np.where(upward, CEILING, FLOOR), WALL).astype(np.uint8)
    across = np.where(axis == 0, points[..., 2], points[..., 0])
    along = np.where(axis == 1, points[..., 2], points[..., 1])
    image = _room_colours(rng, stuff, across, along, distance)
    _paint_details(rng, room, image, stuff, axis, points)
    light = _room_light(room, reach, points)
    light[stuff == FLOOR] *= _shadows(room, camera, places)[stuff == FLOOR]
    lamps = np.zeros(stuff.shape, bool)
    for x, _, z in room.lamps:
        near = (np.abs(points[..., 0] - x) < 0.15) & (np.abs(points[..., 2] - z) < 0.6)
        lamps |= near & (stuff == CEILING)
    for channel in range(3):
        image[..., channel] *= light * np.float32(room.tint[channel])
    image[lamps] = 250
    return np.clip(image, 0, 255, out=image).astype(np.uint8), stuff


def _room_light(room: Room, reach: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 [H, W]: brightness of surfaces, darker in corners; worked out at half size."""
    height, width = reach.shape[:2]
    x, y, z = (reach[::2, ::2, k] for k in range(3))
    first = np.minimum(np.minimum(x, y), z)
    second = np.maximum(np.minimum(x, y), np.minimum(np.maximum(x, y), z))
    corner = 1 - 0.35 * np.exp(-9 * (second / first - 1))
    light = room.light_at(points[::2, ::2]) * corner
    return cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)


def _room_colours(
    rng: np.random.Generator,
    stuff: np.ndarray,
    across: np.ndarray,
    along: np.ndarray,
    distance: np.ndarray,
) -> np.ndarray:
    """float32 [H, W, 3]: floor, wall and ceiling textures, blurred with distance."""
    atlas = np.stack([_surface(rng, kind) for kind in (FLOOR, WALL, CEILING)])
    blurred = np.stack([cv2.blur(t, (7, 7), borderType=cv2.BORDER_REFLECT) for t in atlas])
    scale = _TILE / _TILE_METRES
    u = (across * scale).astype(np.int32) & (_TILE - 1)
    v = (along * scale).astype(np.int32) & (_TILE - 1)
    flat = (stuff.astype(np.int32) * _TILE + v) * _TILE + u
    flat += (distance > 3.0) * (3 * _TILE * _TILE)
    texels = np.concatenate([atlas, blurred]).reshape(-1, 3)
    return texels.take(flat, axis=0).astype(np.float32)


def _surface(rng: np.random.Generator, kind: int) -> np.ndarray:
    """uint8 [256, 256, 3]: a tileable texture of 2 m: concrete, tiles, planks or paint."""
    choices = {
        FLOOR: [(120, 118, 112), (150, 140, 125), (90, 96, 100), (165, 160, 150), (130, 100, 75)],
        WALL: [(205, 202, 192), (185, 195, 198), (165, 172, 158), (150, 148, 146), (190, 165, 140)],
        CEILING: [(225, 225, 222), (190, 192, 195), (150, 152, 156)],
    }[kind]
    colour = random_colour(rng, choices, 12)
    shift = rng.integers(0, _TILE, 2)
    patch = np.roll(noise_bank()[rng.integers(8)], shift, axis=(0, 1))[..., None]
    strength = rng.uniform(0.03, 0.14) if kind == FLOOR else rng.uniform(0.01, 0.06)
    texture = np.clip(colour * (1 + strength * patch), 0, 255).astype(np.uint8)
    pattern = rng.integers(4)
    step = int(rng.choice([32, 64, 128]))
    line = random_colour(rng, [(70, 70, 70), (200, 200, 195)], 10) * 0.5 + colour * 0.5
    if pattern == 1 or (kind == CEILING and pattern == 2):  # tiles
        texture[::step] = texture[1::step] = line
        texture[:, ::step] = texture[:, 1::step] = line
    elif pattern == 2:  # planks or bricks
        texture[::step] = line
        for row in range(0, _TILE, step):
            at = (row // step * 3 * step // 2) % _TILE
            texture[row : row + step, at : at + 2] = line
            shade = 1 + rng.normal(0, 0.05)
            band = texture[row + 1 : row + step]
            texture[row + 1 : row + step] = np.clip(band * shade, 0, 255).astype(np.uint8)
    return texture


def _paint_details(
    rng: np.random.Generator,
    room: Room,
    image: np.ndarray,
    stuff: np.ndarray,
    axis: np.ndarray,
    points: np.ndarray,
) -> None:
    """Floor lines, dado and baseboard, doors with frame and handle; in place."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    floor, wall = stuff == FLOOR, stuff == WALL
    if rng.random() < 0.5:
        at, colour = (
            rng.uniform(0.2, 0.42) * room.width,
            random_colour(rng, [(225, 190, 50), *GREYS]),
        )
        image[floor & (np.abs(np.abs(x) - at) < 0.05)] = colour
    if rng.random() < 0.5:
        dado = random_colour(rng, [*PAINTS, *GREYS])
        image[wall & (y < rng.uniform(0.8, 1.4))] *= (dado / 200).astype(np.float32)
    if rng.random() < 0.6:
        image[wall & (y < 0.1)] = random_colour(rng, GREYS)
    for side, start, width, colour in room.doors:
        place = (axis == 0) & (np.sign(x) == side) & (y < 2.1)
        frame = place & (z > start - 0.08) & (z < start + width + 0.08) & (y < 2.1)
        leaf = place & (z > start) & (z < start + width) & (y < 2.03)
        image[frame] = colour * 0.5 + 60
        image[leaf] = colour
        stuff[frame] = DOOR
        image[leaf & (y > 1.4) & (y < 1.85) & (np.abs(z - start - width / 2) < 0.18)] = (70, 85, 95)
        image[leaf & (np.abs(y - 1.02) < 0.04) & (np.abs(z - start - 0.12) < 0.07)] = 40


def _shadows(
    room: Room, camera: Camera, places: list[tuple[float, np.ndarray, float, Prop]]
) -> np.ndarray:
    """float32 [H, W], 0 to 1: soft shadows on the floor, cast by the strongest lamp."""
    layer = np.full(camera.size, 255, np.uint8)
    lamp = room.lamps[int(room.power.argmax())]
    turn = np.linspace(0, 2 * np.pi, 9)[:-1]
    circle = np.stack([np.cos(turn), np.zeros(8), np.sin(turn)], 1)
    for _, place, _, prop in places:
        foot = place + circle * prop.radius * 0.7
        top = foot + [0, min(prop.height, 0.8 * room.height), 0]
        cast = lamp + (top - lamp) * (lamp[1] / (lamp[1] - top[:, 1:2]))
        for outline, dark in ((np.concatenate([foot, cast]), 150), (foot, 95)):
            outline[:, 2] = np.clip(outline[:, 2], 0.4, room.length)
            outline[:, 1] = 0
            pixels, depth = camera.project(outline)
            if depth.min() > 0.1:
                pixels = np.clip(pixels, -4000, 4000)
                cv2.fillConvexPoly(layer, cv2.convexHull(pixels.astype(np.int32)), dark)
    sigma = camera.size[0] / 80
    return cv2.GaussianBlur(layer, (0, 0), sigma).astype(np.float32) / 255
