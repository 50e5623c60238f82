"""What stands about in synthetic scenes: one function a class, each drawing with a `Painter`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from distill.data.drawing import Painter, noise_texture, random_colour

PAINTS = [(200, 60, 45), (40, 90, 170), (230, 180, 40), (60, 130, 70), (225, 120, 35)]
GREYS = [(60, 62, 66), (120, 122, 126), (200, 200, 196), (232, 230, 224)]
CARDBOARD = [(176, 132, 86), (150, 112, 72), (196, 160, 116)]
SKIN = [(224, 180, 150), (180, 130, 95), (120, 82, 60)]

Draw = Callable[[Painter, np.ndarray, float, np.random.Generator], None]


@dataclass(frozen=True, slots=True)
class Prop:
    """One class of object.

    Attributes:
        name: Class name.
        colour: RGB to show its mask in.
        radius: Of the circle on the floor that it keeps free, metres.
        height: Rough height for its shadow, metres.
        draw: Paints one at a place on the floor, with a yaw and a generator for its looks.
    """

    name: str
    colour: tuple[int, int, int]
    radius: float
    height: float
    draw: Draw


def _crate_face(rng: np.random.Generator, colour: np.ndarray, plastic: bool) -> np.ndarray:
    """A cardboard side with tape and label, or a ribbed plastic one with a grip."""
    face = noise_texture(rng, colour, 0.06 if plastic else 0.13)
    if plastic:
        for x in range(4, 48, 8):
            face[:, x : x + 2] = face[:, x : x + 2] // 4 * 3
        cv2.rectangle(face, (16, 8), (31, 13), (30, 30, 32), -1)
        return face
    tape = tuple(float(c) for c in colour * 0.75 + 40)
    cv2.rectangle(face, (0, 21), (47, 25), tape, -1)
    if rng.random() < 0.7:
        x, y = int(rng.integers(3, 28)), int(rng.integers(27, 34))
        cv2.rectangle(face, (x, y), (x + 14, y + 10), (228, 226, 220), -1)
        for row in range(y + 2, y + 9, 3):
            cv2.line(face, (x + 2, row), (x + int(rng.integers(6, 13)), row), (50, 50, 50), 1)
    cv2.rectangle(face, (0, 0), (47, 47), tuple(float(c) for c in colour * 0.65), 1)
    return face


def draw_box(painter: Painter, place: np.ndarray, yaw: float, rng: np.random.Generator) -> None:
    """A carton or a ribbed plastic crate."""
    plastic = rng.random() < 0.35
    colour = random_colour(rng, PAINTS + GREYS[1:] if plastic else CARDBOARD + GREYS[2:])
    faces = {k: _crate_face(rng, colour, plastic) for k in ("side", "end", "top")}
    size = rng.uniform([0.35, 0.28, 0.3], [0.8, 0.75, 0.65])
    painter.prism(place, size.tolist(), yaw, faces.__getitem__)


def draw_barrel(painter: Painter, place: np.ndarray, yaw: float, rng: np.random.Generator) -> None:
    """A ribbed drum with a lid and sometimes a band of another colour."""
    colour = random_colour(rng, PAINTS + GREYS)
    band = random_colour(rng, PAINTS + GREYS) if rng.random() < 0.5 else colour
    r, h = rng.uniform(0.22, 0.34), rng.uniform(0.65, 1.0)
    dark = colour * 0.7
    rings = [(r, 0.0, colour)]
    for share, paint in ((0.32, colour), (0.64, band)):
        rings += [
            (r, h * share, dark),
            (r * 1.05, h * (share + 0.02), dark),
            (r, h * (share + 0.04), paint),
        ]
    rings[-1] = (r, h * 0.68, colour)
    rings[3] = (r, h * 0.36, band)
    rings += [(r * 1.04, h * 0.97, dark), (r * 1.04, h, colour * 0.85)]
    painter.lathe(place, rings)


def draw_cone(painter: Painter, place: np.ndarray, yaw: float, rng: np.random.Generator) -> None:
    """A traffic cone: square foot, stripes."""
    colour = random_colour(rng, [(235, 95, 30), (240, 200, 40), (200, 60, 45), (170, 210, 50)])
    stripe = random_colour(rng, [(235, 235, 230), (60, 60, 62)], 8)
    h, r = rng.uniform(0.45, 0.8), rng.uniform(0.13, 0.19)
    foot = noise_texture(rng, colour * (0.4 if rng.random() < 0.5 else 0.8), 0.08)
    painter.prism(place, [r * 2.6, 0.05, r * 2.6], yaw, lambda _: foot)
    bounds = [0.0, 0.28, 0.46, 0.64, 0.8, 1.0] if rng.random() < 0.6 else [0.0, 0.4, 0.65, 1.0]
    rings = [
        (r * (1 - 0.85 * b), 0.05 + h * b, stripe if i % 2 else colour)
        for i, b in enumerate(bounds)
    ]
    painter.lathe(place, rings, 14)


def draw_pallet(painter: Painter, place: np.ndarray, yaw: float, rng: np.random.Generator) -> None:
    """One to six wooden pallets in a stack."""
    colour = random_colour(rng, [(190, 150, 100), (140, 108, 76), (110, 100, 88), (60, 110, 165)])
    side = noise_texture(rng, colour, 0.15, (16, 48))
    side[5:12, 4:21] = side[5:12, 27:44] = (22, 19, 17)
    top = noise_texture(rng, colour, 0.18)
    for x in range(7, 48, 10):
        top[:, x : x + 3] = (40, 34, 30)
    faces = {"side": side, "end": side, "top": top}
    for level in range(int(rng.integers(1, 7)) if rng.random() < 0.6 else 1):
        shift = rng.normal(0, 0.015, 3) * [1, 0, 1]
        painter.prism(
            place + [0, 0.144 * level, 0] + shift, [1.0, 0.144, 0.8], yaw, faces.__getitem__
        )


def draw_person(painter: Painter, place: np.ndarray, yaw: float, rng: np.random.Generator) -> None:
    """A standing or walking mannequin, clothed at random, sometimes with vest and helmet."""
    tall = rng.uniform(1.55, 1.9)
    skin, shirt = random_colour(rng, SKIN, 8), random_colour(rng, PAINTS + GREYS)
    trousers = random_colour(rng, [*GREYS[:2], (45, 60, 95), (95, 80, 60)])
    across, ahead = (
        np.array([np.cos(yaw), 0, np.sin(yaw)]),
        np.array([-np.sin(yaw), 0, np.cos(yaw)]),
    )

    def at(side: float, height: float, front: float = 0.0) -> np.ndarray:
        return place + across * side * tall + ahead * front * tall + [0, height * tall, 0]

    stride, parts = rng.uniform(0, 0.13), []
    for sign in (-1, 1):
        knee = at(sign * 0.055, 0.27, sign * stride * 0.6)
        foot = at(sign * 0.06, 0.03, sign * stride)
        parts.append((at(sign * 0.05, 0.5), knee, (0.055, 0.042), trousers))
        parts.append((knee, foot, (0.042, 0.032), trousers))
        parts.append(
            (foot, at(sign * 0.06, 0.015, sign * stride - 0.06), (0.03, 0.025), skin * 0.2)
        )
        lift, out = rng.uniform(-0.2, 0.6) ** 2, rng.uniform(0.02, 0.1)
        elbow = at(sign * (0.13 + out), 0.64 + 0.1 * lift, -sign * stride)
        hand = at(sign * (0.13 + out * 1.3), 0.5 + 0.5 * lift, -0.08 - sign * stride)
        parts.append((at(sign * 0.115, 0.79), elbow, (0.034, 0.028), shirt))
        parts.append((elbow, hand, (0.028, 0.022), skin if rng.random() < 0.5 else shirt))
    parts.append((at(0, 0.53), at(0, 0.77), (0.085, 0.1), shirt))
    if rng.random() < 0.4:  # reflective vest
        vest = random_colour(rng, [(210, 230, 50), (240, 120, 40)], 10)
        parts[-1] = (*parts[-1][:3], vest)
        parts.append((at(0, 0.66, -0.02), at(0, 0.68, -0.02), (0.082, 0.082), np.full(3, 215.0)))
    parts.append((at(0, 0.8), at(0, 0.87), (0.03, 0.03), skin))
    eye = painter.camera.position
    parts.sort(key=lambda p: -float(np.linalg.norm((p[0] + p[1]) / 2 - eye)))
    for start, end, radii, colour in parts:
        painter.limb(start, end, [r * tall for r in radii], colour)
    painter.ball(at(0, 0.93), 0.062 * tall, skin)
    hat = random_colour(rng, [*PAINTS, *GREYS]) if rng.random() < 0.6 else skin * 0.25
    painter.lathe(
        at(0, 0.945),
        [(0.068 * tall, 0, hat), (0.055 * tall, 0.03 * tall, hat), (0.02 * tall, 0.05 * tall, hat)],
        12,
    )


def draw_vehicle(painter: Painter, place: np.ndarray, yaw: float, rng: np.random.Generator) -> None:
    """A low transport robot: skirt, body, scanner on top, lights."""
    colour = random_colour(rng, PAINTS + GREYS)
    length, width, height = rng.uniform([0.8, 0.5, 0.22], [1.15, 0.7, 0.38])
    painter.prism(
        place, [length * 0.95, 0.1, width * 0.9], yaw, lambda _: np.full((8, 8, 3), 28, np.uint8)
    )
    side = noise_texture(rng, colour, 0.05, (24, 48))
    side[-6:] = random_colour(rng, GREYS, 6).astype(np.uint8)
    side[4:9, 3:9] = side[4:9, 39:45] = random_colour(rng, [(250, 250, 225), (250, 90, 60)], 4)
    if rng.random() < 0.5:  # warning stripes
        for x in range(-8, 48, 12):
            cv2.line(side, (x, 23), (x + 6, 17), (235, 200, 40), 3)
    cv2.rectangle(side, (18, 6), (30, 12), (35, 40, 48), -1)
    top = noise_texture(rng, colour * 0.9, 0.05)
    cv2.rectangle(top, (5, 5), (42, 42), tuple(float(c) for c in colour * 0.5), 2)
    faces = {"side": side, "end": side, "top": top}
    painter.prism(place + [0, 0.08, 0], [length, height, width], yaw, faces.__getitem__)
    dark, above = random_colour(rng, GREYS[:2], 6), 0.08 + height
    rings = [(0.07, above, dark), (0.07, above + 0.06, dark * 0.4), (0.065, above + 0.1, dark)]
    painter.lathe(place, rings, 12)


def draw_arm(painter: Painter, place: np.ndarray, yaw: float, rng: np.random.Generator) -> None:
    """A robot arm on a pedestal: two links, joints, a gripper."""
    colour = random_colour(rng, PAINTS + GREYS[2:])
    joint = random_colour(rng, GREYS, 8)
    stand = rng.uniform(0.25, 0.6)
    block = noise_texture(rng, random_colour(rng, GREYS), 0.08)
    painter.prism(place, [0.5, stand, 0.5], yaw, lambda _: block)
    painter.lathe(
        place + [0, stand, 0], [(0.16, 0, joint), (0.15, 0.12, colour), (0.1, 0.24, colour)]
    )
    ahead = np.array([np.cos(yaw * 2), 0.0, np.sin(yaw * 2)])
    shoulder = place + [0, stand + 0.26, 0]
    a, b = rng.uniform(0.7, 1.9), rng.uniform(-0.9, 0.35)
    elbow = shoulder + rng.uniform(0.4, 0.6) * (ahead * np.cos(a) + np.array([0, np.sin(a), 0]))
    wrist = elbow + rng.uniform(0.35, 0.5) * (ahead * np.cos(b) + np.array([0, np.sin(b), 0]))
    tip = wrist - [0, 0.12, 0]
    painter.ball(shoulder, 0.11, joint)
    painter.limb(shoulder, elbow, [0.085, 0.07], colour)
    painter.limb(elbow, wrist, [0.07, 0.05], colour)
    painter.ball(elbow, 0.09, joint)
    painter.ball(wrist, 0.06, joint)
    side = np.cross(ahead, [0, 1, 0]) * 0.05
    for sign in (-1, 1):
        painter.limb(wrist + sign * side, tip + sign * side, [0.02, 0.012], joint * 0.7)


PROPS = (
    Prop("box", (214, 160, 90), 0.5, 0.5, draw_box),
    Prop("barrel", (70, 120, 220), 0.36, 0.85, draw_barrel),
    Prop("cone", (250, 110, 40), 0.28, 0.6, draw_cone),
    Prop("pallet", (150, 100, 50), 0.68, 0.4, draw_pallet),
    Prop("person", (220, 40, 90), 0.42, 1.7, draw_person),
    Prop("vehicle", (60, 200, 120), 0.68, 0.4, draw_vehicle),
    Prop("arm", (160, 80, 210), 0.7, 1.2, draw_arm),
)
