"""Shifts are seeded, graded and timed; faults are seen for what they are, weather is not one."""

from __future__ import annotations

import numpy as np
import pytest
from colours import scene
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adaptation.faults import fault_of
from edge_runtime.adaptation.shifts import KINDS, Shift, ShiftStream, parse_shifts
from edge_runtime.datasets import load_dataset
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame

IMAGE = np.clip(scene(0).astype(int).repeat(4, 0).repeat(4, 1) + 20, 0, 255).astype(np.uint8)


def drawn(kind: str, severity: float, seed: int = 0, index: int = 0) -> np.ndarray:
    return ShiftStream([Shift(kind, severity)], seed).image(IMAGE, index)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_is_graded_seeded_and_leaves_the_image_alone(kind: str) -> None:
    before = IMAGE.copy()
    moved = [np.abs(drawn(kind, s).astype(int) - IMAGE).mean() for s in (0.0, 0.2, 0.5, 0.9)]
    assert moved[0] == 0 and moved == sorted(moved) and moved[1] > 0.2
    assert (IMAGE == before).all()
    assert (drawn(kind, 0.5) == drawn(kind, 0.5)).all()
    assert drawn(kind, 1.0).dtype == np.uint8 and drawn(kind, 1.0).shape == IMAGE.shape


@pytest.mark.parametrize("kind", ["cast", "dirt", "occlusion", "noise", "dark"])
def test_another_seed_draws_another_one(kind: str) -> None:
    assert any((drawn(kind, 0.5, seed=s) != drawn(kind, 0.5)).any() for s in range(1, 6))


def test_dirt_stays_where_it_is_and_noise_does_not() -> None:
    assert (drawn("dirt", 0.5, index=3) == drawn("dirt", 0.5, index=9)).all()
    assert (drawn("noise", 0.5, index=3) != drawn("noise", 0.5, index=9)).any()


def test_onset_recovery_and_ramp() -> None:
    shift = parse_shifts("fog:0.8@10-30~5")[0]
    assert [shift.at(i) for i in (0, 9, 30, 99)] == [0, 0, 0, 0]
    assert shift.at(10) == pytest.approx(0.16) and shift.at(29) == pytest.approx(0.16)
    assert shift.at(14) == shift.at(20) == pytest.approx(0.8)
    frames = [Frame(IMAGE, i, str(i)) for i in range(40)]
    moved = [(f.image != IMAGE).any() for f in ShiftStream([shift]).frames(frames)]
    assert moved == [10 <= i < 30 for i in range(40)]


def test_several_shifts_are_drawn_over_one_another() -> None:
    both = ShiftStream(parse_shifts("fog:0.5,noise:0.3")).image(IMAGE, 0)
    fog = ShiftStream(parse_shifts("fog:0.5")).image(IMAGE, 0)
    assert np.abs(both.astype(int) - fog).mean() > 5


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 100),
    st.integers(0, 999),
    st.one_of(st.none(), st.integers(1, 999)),
    st.integers(0, 99),
)
def test_what_is_written_is_read_again(
    kind: str, percent: int, start: int, length: int | None, ramp: int
) -> None:
    end = None if length is None else start + length
    shift = Shift(kind, percent / 100, start, end, ramp)
    assert parse_shifts(str(shift)) == (shift,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" , ", "empty"),
        ("fgo:0.5", "unknown kind; expected .*fog"),
        ("fog:1.5", "from 0 to 1"),
        ("fog:0.5.5", "from 0 to 1"),
        ("fog:-1", "expected KIND"),
        ("fog:nan", "expected KIND"),
        ("fog@30-10", "ends before it starts"),
        ("fog@10", "expected KIND"),
        ("fog:0.5@1e9-2", "expected KIND"),
        ("fog;rm -rf", "expected KIND"),
    ],
)
def test_a_spec_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_shifts(text)


def fault(image: np.ndarray, before: np.ndarray | None = None) -> str | None:
    previous = None if before is None else Frame(before, 0, "")
    return fault_of(Frame(image.astype(np.uint8), 1, ""), previous)


def test_faults_are_named() -> None:
    rng = np.random.default_rng(0)
    assert fault(np.zeros_like(IMAGE)) == "black"
    assert fault(np.full_like(IMAGE, 255)) == "white"
    assert fault(np.full_like(IMAGE, 90)) == "flat"
    assert fault(IMAGE, IMAGE.copy()) == "frozen"
    assert fault(rng.choice([0, 255], IMAGE.shape)) == "saturated"
    assert fault(drawn("occlusion", 0.6)) == "occluded"
    assert fault(IMAGE, IMAGE[:-8]) is None  # another resolution is no fault
    assert fault(IMAGE, np.roll(IMAGE, 3, 1)) is None


def test_a_tiny_image_is_no_error() -> None:
    assert fault(scene(0)[:3, :2]) is None


def test_weather_is_no_fault(camvid: object) -> None:
    """On real frames, at every severity up to strong; nor is a clear day."""
    dataset = load_dataset(f"{camvid}:val")
    for index in range(0, len(dataset), 25):
        image = dataset.read(index).image
        assert fault(image) is None
        for kind in sorted(set(KINDS) - {"occlusion"}):
            stream = ShiftStream([Shift(kind, 0.65)])
            assert fault(stream.image(image, index)) is None, kind
