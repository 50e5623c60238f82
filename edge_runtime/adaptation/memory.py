"""Places the robot has been, known by what they do to the features, and what helped there.

A place is told by its signature: the first adapter point's channel means and variances, which no
adapter changes. So it is recognised within a few frames, whatever correction is in use.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, FiniteFloat

from edge_runtime.adaptation.divergence import divergence
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.sealed import SealedFolder, StoreError, Unusable, plain
from edge_runtime.errors import InputError
from edge_runtime.manifest import Spec

log = logging.getLogger(__name__)

__all__ = ["Place", "PlaceMemory", "StoreError"]
_MOST = 16
_VERSIONS = 3
_NEAR, _SHARE = 0.1, 0.2  # see docs/adaptation.md
_BROUGHT = {"from": "bundle"}
_LEAST_WEIGHT = 0.125  # of a visit in the signature, so that a place may change slowly


class _PlaceRecord(Spec):
    """One place in a file."""

    id: int = Field(ge=1)
    version: int = Field(ge=1)
    visits: int = Field(ge=1)
    used: int = Field(ge=0)
    signature: list[FiniteFloat]
    adapter: list[FiniteFloat]
    note: dict[str, Any] = {}


class _Record(Spec):
    """What a file says."""

    reference_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    next_id: int = Field(ge=1)
    places: list[_PlaceRecord] = Field(max_length=4096)


@dataclass(frozen=True, slots=True)
class Place:
    """A remembered place.

    Attributes:
        id: Its number, never given to another place.
        version: How often its adapter was written.
        visits: How often it was remembered.
        used: When it was last useful, counted in uses of the memory, not in seconds.
        signature: float32 [S], channel means and then variances at the first adapter point.
        adapter: float32 [A], what helped there.
        note: What the learner wrote down.
        distance: How far the signature that it was recalled by is from its own.
    """

    id: int
    version: int
    visits: int
    used: int
    signature: np.ndarray
    adapter: np.ndarray
    note: dict[str, Any] = field(default_factory=dict)
    distance: float = 0.0


class PlaceMemory:
    """A bounded memory of places; the least recently useful one goes first.

    Args:
        reference: Of the bundle whose adapters are remembered.
        folder: Where the memory is kept, as one file a version; None keeps it in memory alone.
        most: Places at most.
        near: Divergence within which a place is recognised in any case.
        share: Share of the divergence from the training domain within which it is, too: what is
            far from home varies more. Within half of either, `remember` renews a place.
        known: Places that the bundle brings along, as signature and adapter; one that is remembered
            already stays as it is.
    """

    def __init__(
        self,
        reference: Reference,
        folder: Path | str | None = None,
        most: int = _MOST,
        near: float = _NEAR,
        share: float = _SHARE,
        known: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        if most < 1 or not near > 0 or not 0 <= share < 1:
            raise InputError(
                f"most is {most}, expected at least 1; near {near}, expected above 0; share "
                f"{share}, expected 0 up to 1"
            )
        self.reference, self.most, self.near, self.share = reference, most, near, share
        self._half = reference.points[0].channels
        self._size = 2 * len(reference.mean)
        self._digest = _digest(reference)
        self._home = np.concatenate([reference.mean[: self._half], reference.var[: self._half]])
        self._places: dict[int, Place] = {}
        self._uses = 0
        self._next_id = 1
        self._files: SealedFolder[_Record] | None = None
        if folder is not None:
            where = Path(folder) / self._digest[:16]
            self._files = SealedFolder(where, "PLACES", _Record, _VERSIONS, self._check)
            self._load()
        for signature, adapter in known:
            if self._same_place(self._checked(signature)) is None:
                place = Place(self._next_id, 1, 1, self._tick(), signature, adapter, _BROUGHT)
                self._next_id += 1
                self._keep(place)

    @property
    def places(self) -> list[Place]:
        """All places, the most recently useful one first."""
        return sorted(self._places.values(), key=lambda place: -place.used)

    def distances(self, signature: np.ndarray) -> dict[int, float]:
        """Distance of a signature from every place, by id; 0 stands for the training domain."""
        signature, half = self._checked(signature), self._half
        others = np.stack([self._home, *(place.signature for place in self._places.values())])
        each = divergence(signature[:half], signature[half:], others[:, :half], others[:, half:])
        return dict(zip([0, *self._places], each.mean(axis=1).tolist(), strict=True))

    def recall(self, signature: np.ndarray) -> Place | None:
        """The nearest place, if it is near enough and nearer than the training domain.

        Args:
            signature: float32 [S], means and variances at the first adapter point, pooled over the
                latest frames; three are enough.

        Returns:
            The place with its `distance`, which counts as useful now; None for an unknown place,
            and at home, where no adapter is needed. (Home is told less surely than by drift, for a
            scene resembles itself more than home's mean: ask only where drift says it is not home.)
        """
        distances = self.distances(signature)
        nearest = min(distances, key=lambda id_: distances[id_])
        if nearest == 0 or distances[nearest] > max(self.near, self.share * distances[0]):
            return None
        place = replace(self._places[nearest], used=self._tick())
        self._places[nearest] = place
        return replace(place, distance=distances[nearest])

    def remember(
        self, signature: np.ndarray, adapter: np.ndarray, note: dict[str, Any] | None = None
    ) -> Place:
        """Remember what helped at a place: a new place, or a new version of one that is the same.

        Args:
            signature: float32 [S], pooled over the frames that the adapter was learnt on.
            adapter: float32 [A].
            note: Plain values or arrays.

        Returns:
            The place as it is remembered now.

        Raises:
            InputError: A vector is of another network or not finite, or the note not plain.
            StoreError: It cannot be written to disk; it is remembered until the program ends.
        """
        signature = self._checked(signature)
        adapter = np.array(adapter, np.float32)
        if adapter.shape != (self._size,) or not np.isfinite(adapter).all():
            raise InputError(f"adapter {adapter.shape}, expected ({self._size},) and finite values")
        note = plain(note or {})
        old = self._same_place(signature)
        if old is None:
            place = Place(self._next_id, 1, 1, self._tick(), signature, adapter, note)
            self._next_id += 1
        else:
            weight = max(1 / (old.visits + 1), _LEAST_WEIGHT)
            blended = (1 - weight) * old.signature + weight * signature
            place = Place(
                id=old.id,
                version=old.version + 1,
                visits=old.visits + 1,
                used=self._tick(),
                signature=blended.astype(np.float32),
                adapter=adapter,
                note=note,
            )
        self._keep(place)
        self._save()
        return place

    def forget(self, place_id: int) -> None:
        """Remove a place, such as one whose adapter did harm; unknown ids are no error.

        Raises:
            StoreError: It cannot be written to disk; it is forgotten until the program ends.
        """
        if self._places.pop(place_id, None) is not None:
            self._save()

    def _keep(self, place: Place) -> None:
        self._places[place.id] = place
        while len(self._places) > self.most:
            del self._places[self.places[-1].id]

    def _same_place(self, signature: np.ndarray) -> Place | None:
        distances = self.distances(signature)
        most = max(self.near, self.share * distances.pop(0)) / 2
        nearest = min(distances, key=lambda id_: distances[id_], default=0)
        return self._places[nearest] if nearest and distances[nearest] <= most else None

    def _checked(self, signature: np.ndarray) -> np.ndarray:
        values = np.array(signature, np.float32)
        if values.shape != (2 * self._half,) or not np.isfinite(values).all():
            raise InputError(
                f"signature of shape {values.shape}, expected ({2 * self._half},) and finite "
                "values: mean and variance of the first adapter point's channels"
            )
        return values

    def _tick(self) -> int:
        self._uses += 1
        return self._uses

    def _load(self) -> None:
        assert self._files is not None
        found = self._files.newest()
        if found is None:
            return
        for record in found[1].places:
            self._places[record.id] = Place(
                id=record.id,
                version=record.version,
                visits=record.visits,
                used=record.used,
                signature=np.array(record.signature, np.float32),
                adapter=np.array(record.adapter, np.float32),
                note=dict(record.note),
            )
        self._uses = max((place.used for place in self._places.values()), default=0)
        self._next_id = max(found[1].next_id, max(self._places, default=0) + 1)
        for place in itertools.islice(self.places, self.most, None):
            del self._places[place.id]

    def _save(self) -> None:
        if self._files is None:
            return
        records = [
            _PlaceRecord(
                id=place.id,
                version=place.version,
                visits=place.visits,
                used=place.used,
                signature=place.signature.astype(float).tolist(),
                adapter=place.adapter.astype(float).tolist(),
                note=place.note,
            )
            for place in self.places
        ]
        record = _Record(reference_sha256=self._digest, next_id=self._next_id, places=records)
        self._files.write(record)

    def _check(self, record: _Record) -> None:
        if record.reference_sha256 != self._digest:
            raise Unusable("it was learnt on another network")
        if len({place.id for place in record.places}) < len(record.places):
            raise Unusable("two places share an id")
        largest = float(np.finfo(np.float32).max)
        for place in record.places:
            for what, values, size in (
                ("signature", place.signature, 2 * self._half),
                ("adapter", place.adapter, self._size),
            ):
                if len(values) != size or max(map(abs, values), default=0.0) > largest:
                    raise Unusable(f"place {place.id}: {what} is not {size} values of float32")


def _digest(reference: Reference) -> str:
    """SHA-256 of what the adapters and signatures depend on: points and their statistics."""
    digest = hashlib.sha256(repr([(p.name, p.channels) for p in reference.points]).encode())
    for values in (reference.mean, reference.var):
        digest.update(np.ascontiguousarray(values, np.float32).tobytes())
    return digest.hexdigest()
