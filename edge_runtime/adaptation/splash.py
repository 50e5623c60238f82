"""Dirt that lands on the lens: many small places that change at once, and then stay as they are.

What enters the network hardly tells dirt from another scene: as channel statistics, drops move no
more than a street does. But scenes move and dirt does not. From one frame to the next a splash
changes scattered places far more than the scene was changing them, and after that the change stays
where it is, while the scene behind it moves on.

Only what arrives so is found: dirt that was there from the first frame, or settles over minutes, is
not, nor is any in a stream whose frames show one scene after another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

_ROWS = 48  # of the small image that is watched
_COARSE = 13  # pixels of it, around each place, whose mean is light and not detail
_SETTLED = 8  # frames after which it is known how much the scene changes
_JUMP = 4.0  # times that change, from which a place has jumped
_NOISE = 0.7  # grey levels that are never a change
_RATE = 0.1  # weight of a frame in the running mean of changes
_SUDDEN = 1.4  # times the usual: the change of the whole image, for motion goes on evenly
_SHARE = (0.05, 0.45)  # of the places jump in a splash; more is another scene or another light
_SPOTS = 8  # separate ones, at least, of so many places each
_SPOT_PLACES = 3
_STAYS = 8  # frames
_KEPT = 0.88  # of the change, in each of them
_UNDONE = -0.3  # correlation with the change at its landing, from which dirt has gone


@dataclass
class _Suspect:
    """A change that may be a splash: what was there before, and by how much it jumped."""

    before: np.ndarray
    change: np.ndarray
    left: int = _STAYS

    def kept(self, now: np.ndarray) -> float:
        """How much of the change is there still, 1 for all of it."""
        return float(((now - self.before) * self.change).sum() / np.square(self.change).sum())


@dataclass
class SplashMonitor:
    """Watches a stream of frames for dirt that lands on the lens.

    Attributes:
        dirty: Whether some has, and has not gone since.
    """

    dirty: bool = False
    _last: np.ndarray | None = None
    _usual: np.ndarray | None = None
    _frames: int = 0
    _suspect: _Suspect | None = None
    _landed: _Suspect | None = None
    _shape: tuple[int, ...] = field(default=())

    def update(self, image: np.ndarray) -> str | None:
        """Take one frame, uint8 [H, W, 3].

        Light and weather change scattered places at once, too: whoever knows of a shift should
        begin anew after it.

        Returns:
            "dirt on the lens" when it has landed and stayed, "lens clean" when it was wiped off.
        """
        now = _detail(image)
        if self._last is None or image.shape != self._shape:
            self._shape, self._last, self._frames = image.shape, now, 0
            self._usual = self._suspect = self._landed = None
            self.dirty = False
            return None
        size, before, self._last = cv2.absdiff(now, self._last), self._last, now
        event = self._judge(before, now, size)
        self._learn(size)
        return event

    def _judge(self, before: np.ndarray, now: np.ndarray, size: np.ndarray) -> str | None:
        """What a frame says, of which `size` is how much each place changed."""
        if self._suspect is not None:
            self._suspect.left -= 1
            if self._suspect.kept(now) < _KEPT:
                self._suspect = None
            elif self._suspect.left == 0:
                self._landed, self._suspect, self.dirty = self._suspect, None, True
                return "dirt on the lens"
            return None
        if self._usual is None or self._frames < _SETTLED:
            return None
        if cv2.mean(size)[0] < _SUDDEN * (cv2.mean(self._usual)[0] + _NOISE / 2):
            return None
        if self._landed is not None:
            if _correlation(now - before, self._landed.change) > _UNDONE:
                return None
            self._landed, self.dirty = None, False
            return "lens clean"
        jumped = size > _JUMP * (self._usual + _NOISE)
        if _SHARE[0] < jumped.mean() < _SHARE[1] and _spots(jumped) >= _SPOTS:
            self._suspect = _Suspect(before, (now - before) * jumped)
        return None

    def _learn(self, size: np.ndarray) -> None:
        """Take a frame into what is usual; a jump counts no more than it takes to be one."""
        if self._usual is None:
            self._usual = size
        elif self._frames >= _SETTLED:
            size = cv2.min(size, _JUMP * (self._usual + _NOISE))
        cv2.accumulateWeighted(size, self._usual, _RATE)
        self._frames += 1


def _detail(image: np.ndarray) -> np.ndarray:
    """A small image of green without what varies slowly over it, float32 [h, w]."""
    step = max(1, image.shape[0] // (3 * _ROWS))
    green = np.ascontiguousarray(image[::step, ::step, 1])
    size = max(1, round(_ROWS * image.shape[1] / image.shape[0])), _ROWS
    small = cv2.resize(green, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return small - cv2.blur(small, (_COARSE, _COARSE))


def _spots(places: np.ndarray) -> int:
    """Number of separate spots among places, bool [h, w]."""
    found = cv2.connectedComponentsWithStats(places.astype(np.uint8))[2]
    return int((found[1:, cv2.CC_STAT_AREA] >= _SPOT_PLACES).sum())


def _correlation(change: np.ndarray, landed: np.ndarray) -> float:
    """How much a change is like another where that one was, -1 to 1."""
    there = change[landed != 0]
    other = landed[landed != 0]
    return float(there @ other / np.sqrt((there @ there) * (other @ other) + 1e-9))
