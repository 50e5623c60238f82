"""Shifts of the visual domain, drawn over any stream of frames: seeded, graded, timed.

A stand-in for the weather: to see what a bundle does when the world changes, and to test that.
The kinds and their use for judging robustness follow Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019; the severity here is
continuous, from 0 (nothing) to 1 (hardly anything is left to see).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.frames import Frame

# Draws a shift: image uint8 [H, W, 3], severity, the stream's generator, the frame's generator.
Painter = Callable[[np.ndarray, float, np.random.Generator, np.random.Generator], np.ndarray]
KINDS: dict[str, Painter] = {}
_SPEC = re.compile(
    r"(?P<kind>[a-z]+)(:(?P<severity>[\d.]+))?(@(?P<start>\d+)-(?P<end>\d*))?(~(?P<ramp>\d+))?"
)


def _kind(name: str) -> Callable[[Painter], Painter]:
    def register(painter: Painter) -> Painter:
        KINDS[name] = painter
        return painter

    return register


@dataclass(frozen=True)
class Shift:
    """One shift and when it holds.

    Attributes:
        kind: A key of `KINDS`.
        severity: 0 to 1.
        start: First frame it is seen in.
        end: First frame it is gone from; None if it stays.
        ramp: Frames over which it comes, and goes.
    """

    kind: str
    severity: float = 0.5
    start: int = 0
    end: int | None = None
    ramp: int = 0

    def at(self, index: int) -> float:
        """Severity in frame `index` of the stream."""
        if index < self.start or (self.end is not None and index >= self.end):
            return 0.0
        shares = [1.0]
        if self.ramp:
            shares.append((index - self.start + 1) / self.ramp)
            if self.end is not None:
                shares.append((self.end - index) / self.ramp)
        return self.severity * min(shares)

    def __str__(self) -> str:
        when = f"@{self.start}-{'' if self.end is None else self.end}"
        when = when if self.start or self.end is not None else ""
        return f"{self.kind}:{self.severity:g}{when}" + (f"~{self.ramp}" if self.ramp else "")


def parse_shifts(text: str) -> tuple[Shift, ...]:
    """Shifts written as ``KIND[:SEVERITY][@START-[END]][~RAMP]``, several joined by commas.

    ``fog:0.5@100-400~50,noise:0.2`` is fog that comes within 50 frames from frame 100 on and is
    gone at frame 400, over noise from beginning to end.

    Raises:
        InputError: Says which part was not understood.
    """
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = _SPEC.fullmatch(part)
        if match is None:
            raise InputError(
                f"shift '{part}': expected KIND[:SEVERITY][@START-[END]][~RAMP], such as "
                "fog:0.5@100-400"
            )
        if match["kind"] not in KINDS:
            raise InputError(f"shift '{part}': unknown kind; expected {', '.join(sorted(KINDS))}")
        try:
            severity = float(match["severity"] or 0.5)
        except ValueError:
            severity = -1.0
        if not 0 <= severity <= 1:
            raise InputError(f"shift '{part}': the severity must be a number from 0 to 1")
        start, end = int(match["start"] or 0), int(match["end"]) if match["end"] else None
        if end is not None and end <= start:
            raise InputError(f"shift '{part}': it ends before it starts")
        found.append(Shift(match["kind"], severity, start, end, int(match["ramp"] or 0)))
    if not found:
        raise InputError("the shift is empty; expected for instance fog:0.5@100-400")
    return tuple(found)


class ShiftStream:
    """Draws shifts over the frames of one stream.

    Args:
        shifts: Drawn in this order.
        seed: The same seed draws the same.
    """

    def __init__(self, shifts: Iterable[Shift], seed: int = 0) -> None:
        self.shifts, self.seed = tuple(shifts), seed

    def image(self, image: np.ndarray, index: int) -> np.ndarray:
        """The image as frame `index` of the stream, uint8 [H, W, 3]."""
        for place, shift in enumerate(self.shifts):
            severity = shift.at(index)
            if severity > 0:
                stream = np.random.default_rng([self.seed, place])
                frame = np.random.default_rng([self.seed, place, index])
                image = KINDS[shift.kind](image, severity, stream, frame)
        return image

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames of a source with the shifts drawn over them."""
        for index, frame in enumerate(frames):
            yield replace(frame, image=self.image(frame.image, index))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _by_table(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Every value replaced by that of a table, float [256] or [256, 3]."""
    columns = table.reshape(256, -1) if table.ndim == 2 else np.repeat(table[:, None], 3, 1)
    return cv2.LUT(image, _bytes(columns).reshape(1, 256, 3))


@_kind("dark")
def _dark(
    image: np.ndarray, severity: float, _s: np.random.Generator, frame: np.random.Generator
) -> np.ndarray:
    """Less light, and a tone curve that swallows shadows, with the sensor's noise lifted."""
    values = np.arange(256) / 255
    dim = _by_table(image, 255 * (1 - severity) ** 1.8 * values ** (1 + severity))
    return _bytes(dim + frame.standard_normal(image.shape, np.float32) * (3 * severity))


@_kind("fog")
def _fog(
    image: np.ndarray, severity: float, _s: np.random.Generator, _f: np.random.Generator
) -> np.ndarray:
    """Koschmieder's law, with the distance growing towards the upper half of the image."""
    rows = np.linspace(1.0, 0.7, image.shape[0], dtype=np.float32)[:, None, None]
    veil = 1 - (1 - severity) ** (2.3 * rows)
    return _bytes(image * (1 - veil) + 215 * veil)


@_kind("blur")
def _blur(
    image: np.ndarray, severity: float, _s: np.random.Generator, _f: np.random.Generator
) -> np.ndarray:
    """Out of focus: a Gaussian of up to 1/60 of the image's width."""
    return cv2.GaussianBlur(image, (0, 0), max(severity * image.shape[1] / 60, 1e-3))


@_kind("cast")
def _cast(
    image: np.ndarray, severity: float, stream: np.random.Generator, _f: np.random.Generator
) -> np.ndarray:
    """Coloured light: two channels dimmed by different amounts, which ones the seed says."""
    gains = (1 - severity) ** stream.permutation([0.0, 1.25, 2.5])
    return _by_table(image, np.arange(256)[:, None] * gains)


@_kind("noise")
def _noise(
    image: np.ndarray, severity: float, _s: np.random.Generator, frame: np.random.Generator
) -> np.ndarray:
    """Gaussian sensor noise of up to 60 grey levels."""
    return _bytes(image + frame.standard_normal(image.shape, np.float32) * (60 * severity))


@_kind("contrast")
def _contrast(
    image: np.ndarray, severity: float, _s: np.random.Generator, _f: np.random.Generator
) -> np.ndarray:
    """Values drawn together around middle grey."""
    return _by_table(image, 128 + (np.arange(256) - 128) * (1 - severity) ** 2)


@_kind("occlusion")
def _occlusion(
    image: np.ndarray, severity: float, stream: np.random.Generator, _f: np.random.Generator
) -> np.ndarray:
    """Something black before a side of the lens, covering the share `severity` of the view."""
    image, side = image.copy(), int(stream.integers(4))
    turned = np.rot90(image, side)
    turned[: round(severity * turned.shape[0])] = 0
    return image


@_kind("dirt")
def _dirt(
    image: np.ndarray, severity: float, stream: np.random.Generator, _f: np.random.Generator
) -> np.ndarray:
    """Drops and dust out of focus on the lens, in the same places for the whole stream."""
    height, width = image.shape[:2]
    cover = np.zeros((height, width), np.float32)
    for _ in range(round(60 * severity)):
        x, y, radius = stream.uniform([0, 0, 0.01], [width, height, 0.06])
        cv2.circle(
            cover, (int(x), int(y)), max(1, int(radius * width)), stream.uniform(0.3, 0.9), -1
        )
    cover = cv2.GaussianBlur(cover, (0, 0), width / 100)[..., None]
    return _bytes(image * (1 - cover) + np.array([92, 84, 72]) * cover)
