"""Synthetic scenes of a robot's surroundings, with exact masks and boxes, from a seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from distill.data.drawing import Camera, Painter, noise_texture, random_colour
from distill.data.props import GREYS, PAINTS, PROPS, Prop
from distill.data.room import SHELF, Room, Style, build_room, draw_room

STUFF = {
    "floor": (110, 110, 120),
    "wall": (190, 190, 170),
    "ceiling": (230, 230, 240),
    "shelf": (90, 160, 170),
    "door": (130, 70, 60),
}
SEGMENTATION_CLASSES = [*STUFF, *(p.name for p in PROPS)]
DETECTION_CLASSES = [p.name for p in PROPS]
IGNORED = 255
MIN_VISIBLE = 16  # pixels; of objects with less, neither pixels nor box are judged


@dataclass(frozen=True, slots=True)
class Scene:
    """One rendered frame.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        mask: uint8 [H, W], index into `SEGMENTATION_CLASSES`, 255 not judged.
        instances: uint8 [H, W], 0 or 1 + the row in `boxes`.
        boxes: float32 [N, 4] xyxy in pixels, of what is visible.
        labels: int32 [N], index into `DETECTION_CLASSES`.
        areas: int32 [N], visible pixels.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray


def render_scene(style: Style, size: tuple[int, int], seed: int, index: int, split: int) -> Scene:
    """Render one scene; the same arguments always give the same pixels.

    Args:
        style: One of `STYLES`.
        size: Picture (height, width) in pixels.
        seed: Of the dataset.
        index: Of the frame within its split.
        split: Number of the split.
    """
    rng = np.random.default_rng([seed, split, index])
    room = build_room(rng, style)
    position = np.array([rng.uniform(-0.25, 0.25) * room.width, rng.uniform(0.5, 1.5), 0.0])
    swing = 0.25 if room.length > 2 * room.width else 0.45
    camera = Camera(
        size,
        position,
        float(rng.uniform(-swing, swing) - 0.5 * position[0] / room.width),
        float(rng.uniform(0.02, 0.28)),
        float(rng.normal(0, 0.02)),
        float(rng.uniform(1.05, 1.45)),
    )
    shelves = [side for side in (-1, 1) if rng.random() < style.shelves]
    places = _place_props(rng, room, camera, style, shelves)
    image, stuff = draw_room(rng, room, camera, places)
    painter = Painter(camera, image)
    painter.ambient = float(rng.uniform(0.4, 0.7))
    for side in shelves:
        _light(painter, room, np.array([side * room.width / 2, 1.2, room.length / 2]))
        _draw_shelf(painter, rng, room, side)
    stuff[painter.instances > 0] = SHELF
    painter.instances[:] = 0
    for number, (_, place, yaw, prop) in enumerate(places, 1):
        painter.number = number
        _light(painter, room, place + [0, prop.height / 2, 0])
        prop.draw(painter, place, yaw, rng)
    props = [prop for *_, prop in places]
    return _label(_expose(rng, image), stuff, painter.instances, props)


def _place_props(
    rng: np.random.Generator, room: Room, camera: Camera, style: Style, shelves: list[int]
) -> list[tuple[float, np.ndarray, float, Prop]]:
    """Distance, place, yaw and kind of objects, far to near, none within another."""
    chosen: list[tuple[float, np.ndarray, float, Prop]] = []
    wanted = int(rng.integers(style.objects[0], style.objects[1] + 1))
    for _ in range(wanted * 6):
        prop = PROPS[rng.integers(len(PROPS))]
        low = -room.width / 2 + prop.radius + 0.6 * (-1 in shelves)
        high = room.width / 2 - prop.radius - 0.6 * (1 in shelves)
        far = min(room.length - prop.radius, 10.0)
        if low >= high:
            continue
        z = 1.3 + prop.radius + (far - 1.3 - prop.radius) * rng.random() ** 1.5
        place = np.array([rng.uniform(low, high), 0.0, z])
        middle, _ = camera.project(place[None] + [0, prop.height / 2, 0])
        in_view = -0.05 < middle[0, 0] / camera.size[1] < 1.05
        apart = all(
            np.hypot(*(place - p)[[0, 2]]) > prop.radius + q.radius for _, p, _, q in chosen
        )
        if in_view and apart:
            distance = float(np.linalg.norm(place - camera.position))
            chosen.append((distance, place, float(rng.uniform(0, 2 * np.pi)), prop))
        if len(chosen) == wanted:
            break
    return sorted(chosen, key=lambda item: -item[0])


def _light(painter: Painter, room: Room, point: np.ndarray) -> None:
    """Set the painter's light to what reaches a point."""
    differences = room.lamps - point
    nearest = differences[int((room.power / (1 + (differences**2).sum(1) / 6)).argmax())]
    painter.light = nearest / (np.linalg.norm(nearest) + 1e-9)
    painter.brightness = float(room.light_at(point)) * 1.25 * room.tint


def _draw_shelf(painter: Painter, rng: np.random.Generator, room: Room, side: int) -> None:
    """A rack along a side wall with small bins on its boards."""
    painter.number = 1
    height, boards = rng.uniform(1.6, min(2.6, room.height - 0.2)), int(rng.integers(3, 6))
    start, end = rng.uniform(1.2, 2.5), room.length - rng.uniform(0.2, 1.5)
    post, back = random_colour(rng, PAINTS + GREYS), noise_texture(rng, np.full(3, 70.0), 0.1)
    face = np.repeat(np.repeat(back, 3, 0), 4, 1)[:140, :190].copy()
    step = 140 // boards
    for row in range(0, 140, step):
        x = 2
        while x < 186:
            w, h = int(rng.integers(6, 16)), int(rng.integers(step // 3, step - 6))
            paint = random_colour(rng, [*PAINTS, *GREYS, (176, 132, 86)])
            if rng.random() < 0.8:
                face[row + step - 4 - h : row + step - 4, x : x + w] = paint * rng.uniform(0.6, 1)
            x += w + int(rng.integers(1, 6))
        face[row + step - 4 : row + step] = post * 0.8
    face[:, ::63] = face[:, 1::63] = face[:, 2::63] = post
    middle = np.array([side * (room.width / 2 - 0.25), 0.0, (start + end) / 2])
    plain = noise_texture(rng, post * 0.7, 0.05)
    textures = {"side": plain, "end": face, "top": plain}
    painter.prism(middle, [0.48, height, end - start], 0.0, textures.__getitem__)


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a camera does: blur, vignette, exposure, noise."""
    height, width = image.shape[:2]
    sharp = rng.uniform(0.4, 0.9) * height / 240
    blurred = cv2.GaussianBlur(image, (0, 0), max(sharp, 0.3)).astype(np.float32)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    gain = rng.uniform(0.8, 1.25) * (1 - rng.uniform(0, 0.25) * (x * x + y * y) / 2)
    blurred *= gain.astype(np.float32)[..., None]
    grain = rng.uniform(1.5, 6.0)
    noise = rng.standard_normal((height, width, 3), np.float32)
    noise[..., 1:] += noise[..., :1]  # partly the same in all channels, as from a Bayer sensor
    blurred += 0.7 * grain * noise
    return np.clip(blurred, 0, 255, out=blurred).astype(np.uint8)


def _label(image: np.ndarray, stuff: np.ndarray, instances: np.ndarray, props: list[Prop]) -> Scene:
    """Masks and boxes from the instance map; slivers are marked as not judged."""
    mask, renumbered = stuff.copy(), np.zeros_like(instances)
    boxes, labels, areas = [], [], []
    for number, prop in enumerate(props, 1):
        visible = instances == number
        area = int(np.count_nonzero(visible))
        if area < MIN_VISIBLE:
            mask[visible] = IGNORED
            continue
        x, y, w, h = cv2.boundingRect(visible.view(np.uint8))
        boxes.append([x, y, x + w, y + h])
        labels.append(DETECTION_CLASSES.index(prop.name))
        areas.append(area)
        mask[visible] = SEGMENTATION_CLASSES.index(prop.name)
        renumbered[visible] = len(boxes)
    return Scene(
        image,
        mask,
        renumbered,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int32),
        np.array(areas, np.int32),
    )
