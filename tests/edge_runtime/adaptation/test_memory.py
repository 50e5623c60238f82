"""Places: recognised from a few frames, bounded, kept on disk whole."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adaptation.memory import PlaceMemory, StoreError
from edge_runtime.adaptation.reference import Reference
from edge_runtime.bundle import Bundle
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import InputError
from edge_runtime.manifest import AdapterPointSpec

POINTS = (AdapterPointSpec(name="stem", channels=3), AdapterPointSpec(name="late", channels=2))
REFERENCE = Reference(POINTS, np.zeros(5, np.float32), np.ones(5, np.float32))


def signature(mean: float, var: float = 1.0) -> np.ndarray:
    return np.array([mean] * 3 + [var] * 3, np.float32)


def adapter(value: float) -> np.ndarray:
    return np.full(10, value, np.float32)


def test_the_nearest_place_is_recalled_if_it_is_near() -> None:
    memory = PlaceMemory(REFERENCE)
    assert memory.recall(signature(2)) is None
    dusk, fog = memory.remember(signature(2), adapter(2)), memory.remember(signature(4), adapter(4))
    assert (dusk.id, fog.id) == (1, 2)
    found = memory.recall(signature(2.2))
    assert found is not None and found.id == dusk.id and (found.adapter == 2).all()
    assert found.distance == pytest.approx(0.2**2 / 2)
    assert memory.recall(signature(3)) is None  # between both, near neither
    assert memory.distances(signature(0.1))[0] == pytest.approx(0.1**2 / 2)


def test_at_home_nothing_is_recalled_however_near_a_place_is() -> None:
    memory = PlaceMemory(REFERENCE)
    memory.remember(signature(0.4), adapter(1))
    assert memory.recall(signature(0.19)) is None
    assert memory.recall(signature(0.21)) is not None


def test_far_from_home_a_place_is_known_from_farther() -> None:
    memory = PlaceMemory(REFERENCE, share=0.2)
    memory.remember(signature(1.8), adapter(1))
    assert memory.recall(signature(2.4)) is not None  # 0.18 from the place, 2 from home
    assert PlaceMemory(REFERENCE, share=0.2).recall(signature(2.4)) is None
    close = PlaceMemory(REFERENCE, share=0.2)
    close.remember(signature(0.6), adapter(1))
    assert close.recall(signature(1.2)) is None  # 0.18 from the place, 0.72 from home


def test_places_that_a_bundle_brings_are_known_and_give_way_to_what_was_learnt(
    tmp_path: Path,
) -> None:
    brought = [(signature(2), adapter(2)), (signature(4), adapter(4))]
    memory = PlaceMemory(REFERENCE, tmp_path, known=brought)
    assert not list(tmp_path.rglob("*.json")), "reading writes nothing"
    found = memory.recall(signature(2.1))
    assert found is not None and (found.adapter == 2).all() and found.note == {"from": "bundle"}
    memory.remember(signature(2), adapter(3))
    again = PlaceMemory(REFERENCE, tmp_path, known=brought)
    assert len(again.places) == 2
    found = again.recall(signature(2))
    assert found is not None and (found.adapter == 3).all()
    assert len(PlaceMemory(REFERENCE, most=1, known=brought).places) == 1


def test_a_second_visit_renews_the_place() -> None:
    memory = PlaceMemory(REFERENCE)
    first = memory.remember(signature(2.0), adapter(1), {"gain": np.float32(0.5)})
    again = memory.remember(signature(2.2), adapter(3))
    assert (again.id, again.version, again.visits) == (first.id, 2, 2)
    assert again.signature[0] == pytest.approx(2.1)
    assert [(p.id, p.adapter[0]) for p in memory.places] == [(1, 3)]


def test_the_least_recently_useful_place_goes() -> None:
    memory = PlaceMemory(REFERENCE, most=3)
    for value in (2, 4, 6):
        memory.remember(signature(value), adapter(value))
    assert memory.recall(signature(2)) is not None
    memory.remember(signature(8), adapter(8))
    assert sorted(p.adapter[0] for p in memory.places) == [2, 6, 8]
    assert memory.places[0].adapter[0] == 8
    assert memory.remember(signature(10), adapter(10)).id == 5


def test_places_outlive_the_program(tmp_path: Path) -> None:
    memory = PlaceMemory(REFERENCE, tmp_path)
    memory.remember(signature(2), adapter(2), {"frames": 40})
    memory.remember(signature(4), adapter(4))
    memory.forget(2)
    memory.forget(77)
    again = PlaceMemory(REFERENCE, tmp_path)
    found = again.recall(signature(2))
    assert found is not None and found.note == {"frames": 40}
    assert [p.id for p in again.places] == [1]
    assert again.remember(signature(6), adapter(6)).id == 3  # an id is not given twice
    smaller = PlaceMemory(REFERENCE, tmp_path, most=1)
    assert [p.id for p in smaller.places] == [3]


def test_what_is_of_another_network_is_refused(tmp_path: Path) -> None:
    memory = PlaceMemory(REFERENCE, tmp_path)
    for wrong in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(InputError, match=r"expected \(6,\) and finite"):
            memory.recall(wrong)
    with pytest.raises(InputError, match=r"expected \(10,\) and finite"):
        memory.remember(signature(1), np.zeros(9))
    with pytest.raises(InputError, match="plain values"):
        memory.remember(signature(1), adapter(1), {"x": object()})
    with pytest.raises(InputError, match="near 0, expected above 0"):
        PlaceMemory(REFERENCE, near=0)
    assert memory.places == []
    memory.remember(signature(1), adapter(1))
    other = Reference(POINTS, np.full(5, 0.5, np.float32), np.ones(5, np.float32))
    assert PlaceMemory(other, tmp_path).places == []
    assert len(PlaceMemory(REFERENCE, tmp_path).places) == 1


def changed(place: bool = False, **fields: object) -> Callable[[dict], dict]:
    def change(content: dict) -> dict:
        if not place:
            return {**content, **fields}
        return {**content, "places": [{**content["places"][0], **fields}]}

    return change


HOSTILE: dict[str, Callable[[dict], object]] = {
    "another network": changed(reference_sha256="0" * 64),
    "no list": changed(places={"id": 1}),
    "twice the same id": lambda content: {**content, "places": content["places"] * 2},
    "an id below one": changed(True, id=0),
    "a number as text": changed(True, id="1"),
    "a signature too short": changed(True, signature=[1.0] * 5),
    "an adapter too long": changed(True, adapter=[1.0] * 11),
    "an adapter that is not finite": changed(True, adapter=[1.0] * 9 + [float("inf")]),
    "an adapter beyond float32": changed(True, adapter=[1.0] * 9 + [-1e300]),
    "an unknown key": changed(True, code="x"),
    "no object": lambda content: [1, 2],
    "very many": lambda content: {**content, "places": content["places"] * 5000},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_memories_are_set_aside(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory = PlaceMemory(REFERENCE, tmp_path)
    memory.remember(signature(2), adapter(2))
    memory.remember(signature(4), adapter(4))
    assert memory._files is not None
    path = memory._files.path(2)
    raw = json.dumps(HOSTILE[name](json.loads(path.read_bytes().partition(b"\n")[2]))).encode()
    head = f"FIELDSIGHT-PLACES-1 {hashlib.sha256(raw).hexdigest()}\n".encode()
    path.write_bytes(head + raw)
    with caplog.at_level(logging.WARNING):
        again = PlaceMemory(REFERENCE, tmp_path)
    assert [p.adapter[0] for p in again.places] == [2]
    assert path.with_suffix(".rejected").exists() and "not used" in caplog.text


@pytest.mark.parametrize("size", [0, 30, 100, -1])
def test_a_memory_cut_off_falls_back_to_the_one_before(tmp_path: Path, size: int) -> None:
    memory = PlaceMemory(REFERENCE, tmp_path)
    memory.remember(signature(2), adapter(2))
    memory.remember(signature(4), adapter(4))
    assert memory._files is not None
    path = memory._files.path(2)
    path.write_bytes(path.read_bytes()[:size])
    assert len(PlaceMemory(REFERENCE, tmp_path).places) == 1


def test_a_full_disk_leaves_the_place_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = PlaceMemory(REFERENCE, tmp_path)
    memory.remember(signature(2), adapter(2))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="No space left"):
            memory.remember(signature(4), adapter(4))
    assert memory.recall(signature(4)) is not None
    assert len(PlaceMemory(REFERENCE, tmp_path).places) == 1
    memory.remember(signature(6), adapter(6))
    assert len(PlaceMemory(REFERENCE, tmp_path).places) == 3


def test_kills_leave_a_whole_memory(writers, tmp_path: Path, adaptive_bundle: Bundle) -> None:
    reference = Reference.of(adaptive_bundle)
    rng = random.Random(3)
    for _ in range(10):
        pid = writers.start("places", tmp_path / "state", adaptive_bundle.path)
        first = int(writers.line())
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, 9)
        said = [first, *map(int, writers.reap())]
        places = PlaceMemory(reference, tmp_path / "state").places
        newest = max(int(place.adapter[0]) for place in places)
        assert newest in (said[-1], said[-1] + 1)
        for place in places:
            assert (place.signature[:3] == 10 * place.adapter[0]).all()
        assert sorted(p.adapter[0] for p in places)[-1] - len(places) < newest
    assert not list(tmp_path.rglob("*.rejected"))


values = st.floats(-20, 20, width=32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(values, st.floats(0.0, 5, width=32)), min_size=1, max_size=30))
def test_the_memory_is_bounded_and_recalls_what_is_nearest(steps: list) -> None:
    memory = PlaceMemory(REFERENCE, most=4)
    for mean, var in steps:
        memory.remember(signature(mean, var), adapter(mean))
        assert 1 <= len(memory.places) <= 4
        used = [place.used for place in memory.places]
        assert used == sorted(set(used), reverse=True)
        distances = memory.distances(signature(mean, var))
        found = memory.recall(signature(mean, var))
        nearest, limit = min(distances.values()), max(memory.near, memory.share * distances[0])
        if found is not None:
            assert found.id != 0 and found.distance == nearest <= limit
        else:
            assert nearest > limit or distances[0] <= nearest


def colours(image: np.ndarray) -> np.ndarray:
    """What the simplest first point would say: mean and variance of R, G and B, float [6]."""
    small = cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA) / 255
    return np.concatenate([small.mean((0, 1)), small.var((0, 1))])


def pooled(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows[:, :3].mean(0), rows[:, 3:].mean(0) + rows[:, :3].var(0)])


def test_real_dusk_is_known_again_from_three_frames_and_day_never_is(camvid: Path) -> None:
    train = load_dataset(f"{camvid}:train")
    at = {s.stem: i for i, s in enumerate(train.samples)}
    dusk = [train.read(i).image for s, i in at.items() if s.startswith("0001TP")][::2]
    day = [train.read(i).image for s, i in at.items() if s.startswith("0006R0")][::3]
    dusk_rows, day_rows = (np.array([colours(i) for i in f]) for f in (dusk, day))
    home = pooled(day_rows)
    points = (AdapterPointSpec(name="stem", channels=3),)
    memory = PlaceMemory(Reference(points, home[:3].astype("f4"), home[3:].astype("f4")))
    half = len(dusk_rows) // 2
    place = memory.remember(pooled(dusk_rows[:half]), np.ones(6))
    windows = [dusk_rows[i : i + 3] for i in range(half, len(dusk_rows) - 2)]
    assert len(windows) > 10 and len(day_rows) > 10
    found = [memory.recall(pooled(rows)) for rows in windows]
    assert all(f is not None and f.id == place.id for f in found)
    assert not any(memory.recall(pooled(day_rows[i : i + 3])) for i in range(len(day_rows) - 2))
