"""The guard: what it promotes, what it refuses, what it takes back, and that it says why."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.adaptation.canary import CanaryReport
from edge_runtime.adaptation.evidence import (
    Outcome,
)
from edge_runtime.adaptation.guard import Guard, GuardOptions, Verdict
from edge_runtime.adaptation.limits import Limits, movement
from edge_runtime.bundle import Bundle
from edge_runtime.frames import Detections, Result, Segmentation

IDENTITY = np.array([1, 1, 1, 0, 0, 0], np.float32)
BETTER = np.array([1.2, 1.1, 1, 0.1, 0, 0], np.float32)


def outcome(adapter: np.ndarray = IDENTITY, **changed: object) -> Outcome:
    """A healthy outcome; tests change one thing about it."""
    healthy = Outcome(
        adapter=adapter,
        frames=3,
        distance=0.5,
        histogram=np.array([0.4, 0.3, 0.3]),
        class_distance=0.1,
        confidence=0.7,
        detections=4.0,
        agreement=0.8,
        finite=True,
    )
    return dataclasses.replace(healthy, **changed)  # type: ignore[arg-type]


def result(
    value: float = 0.5, label: int | None = None, confidence: float = 0.7, count: int = 4
) -> Result:
    """A result whose mask has all three classes alike, or one alone."""
    mask = np.repeat(np.arange(3, dtype=np.uint8), 16)[None].repeat(48, 0)
    mask = mask if label is None else np.full_like(mask, label)
    statistics = np.array([value] * 3 + [1 / 12] * 3, np.float32)
    found = Detections(np.ones((count, 4), "f4"), np.ones(count, "f4"), np.zeros(count, "i4"))
    shown = Segmentation(mask, np.full((12, 12), confidence, np.float32))
    return Result(0, "camera", found, shown, statistics)


@pytest.fixture
def guard(tmp_path: Path, adaptive_bundle: Bundle) -> Guard:
    return Guard(adaptive_bundle, log=tmp_path / "decisions.jsonl")


MERITS = {
    "surer, and closer": (
        {"distance": 0.3, "confidence": 0.72},
        "40% closer, and confidence rises",
    ),
    "mirror images": ({"agreement": 0.85}, "agree on 5.0 points more"),
    "classes": ({"class_distance": 0.01}, "classes come 0.090 closer"),
    "classes, with all else worse": (
        {"class_distance": 0.01, "agreement": 0.5, "confidence": 0.3},
        "classes come 0.090 closer",
    ),
    "no mask to tell by": (
        {"distance": 0.3, "histogram": None, "confidence": None, "class_distance": None},
        "statistics come 40% closer",
    ),
}


@pytest.mark.parametrize("name", MERITS)
def test_what_is_shown_to_be_better_is_promoted(guard: Guard, name: str) -> None:
    fields, expected = MERITS[name]
    verdict = guard.judge(outcome(), dataclasses.replace(outcome(BETTER), **fields))  # type: ignore[arg-type]
    assert verdict.promote and expected in verdict.reasons[0] and len(verdict.reasons) == 1
    assert verdict.numbers["candidate.distance"] == fields.get("distance", 0.5)


UNPROVEN = {
    "the same": {},
    "closer alone": {"distance": 0.1},
    "surer alone": {"confidence": 0.8},
    "a little": {"distance": 0.3, "confidence": 0.705, "agreement": 0.805, "class_distance": 0.05},
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_is_not_shown_to_be_better_is_refused(guard: Guard, name: str) -> None:
    verdict = guard.judge(outcome(), dataclasses.replace(outcome(BETTER), **UNPROVEN[name]))
    assert not verdict.promote
    assert verdict.reasons == ["not shown to be better than the current adapter"]


REFUSED = {
    "not finite": ({"finite": False}, "not finite"),
    "farther": ({"distance": 0.7, "agreement": 0.9}, "move away from the reference: 0.500 to 0.7"),
    "less agreement": ({"distance": 0.1, "agreement": 0.7}, "agree less: 80.0% to 70.0%"),
    "less sure": ({"distance": 0.1, "confidence": 0.3}, "confidence falls"),
    "too sure": ({"distance": 0.1, "confidence": 0.99}, "confidence rises without cause"),
    "one class": ({"distance": 0.1, "histogram": np.array([0.99, 0.01, 0])}, "class 0 takes 99.0%"),
    "other classes": ({"distance": 0.1, "class_distance": 0.6}, "classes move away"),
    "no objects": ({"distance": 0.1, "detections": 0.0}, None),
    "many objects": ({"distance": 0.1, "detections": 50.0}, "objects a frame: 4.0 to 50.0"),
    "one frame": (
        {"distance": 0.1, "confidence": 0.75, "frames": 1},
        "seen on 1 frames, expected 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong_is_enough(guard: Guard, name: str) -> None:
    fields, expected = REFUSED[name]
    current = outcome(detections=30.0 if name == "no objects" else 4.0)
    verdict = guard.judge(current, dataclasses.replace(outcome(BETTER), **fields))  # type: ignore[arg-type]
    expected = expected or "objects a frame: 30.0 to 0.0"
    assert not verdict.promote
    assert len(verdict.reasons) == 1 and expected in verdict.reasons[0]


def test_objects_may_return_to_what_the_training_domain_has(guard: Guard) -> None:
    found = {"detections": 12.0, "agreement": 0.9}
    assert not guard.judge(outcome(detections=0.0), outcome(BETTER, **found)).promote
    found["detections_at_home"] = 8.0
    assert guard.judge(outcome(detections=0.0), outcome(BETTER, **found)).promote
    found["detections"] = 14.0
    verdict = guard.judge(outcome(detections=0.0), outcome(BETTER, **found))
    assert verdict.reasons == ["objects a frame: 0.0 to 14.0"]


def test_agreement_by_chance_is_none(guard: Guard) -> None:
    """A mask of nearly one class agrees with its mirror image whatever it shows."""
    lost = outcome(agreement=0.95, histogram=np.array([0.97, 0.03, 0]))
    better = outcome(BETTER, agreement=0.85, distance=0.1, confidence=0.75)
    assert guard.judge(lost, better).promote
    still = dataclasses.replace(better, histogram=lost.histogram)
    assert guard.judge(lost, still).reasons == ["mirror images agree less: 95.0% to 85.0%"]


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (np.full(6, np.nan), "not finite"),
        (np.ones(5), "shape (5,)"),
        (np.array([9, 1, 1, 0, 0, 0]), "scaled by 9.00, allowed 0.25 to 4.00"),
        (np.array([0, 1, 1, 0, 0, 0]), "scaled by 0.00"),
        (np.array([-1, 1, 1, 0, 0, 0]), "scaled by -1.00"),
        (np.array([1, 1, 1, 5, 5, 5]), "standard deviations"),
    ],
)
def test_adapters_outside_the_ball_are_refused(guard: Guard, adapter, said: str) -> None:
    assert said in (guard.refusal(adapter) or "")
    if adapter.shape == (6,):
        verdict = guard.judge(outcome(), outcome(adapter, distance=0.1, confidence=0.75))
        assert not verdict.promote and said in verdict.reasons[0]
    assert guard.refusal(BETTER) is None


def test_movement_is_in_standard_deviations_of_home(guard: Guard) -> None:
    assert movement(IDENTITY, guard.reference) == 0
    shifted = np.array([1, 1, 1, *[1 / 12**0.5] * 3])
    assert movement(shifted, guard.reference) == pytest.approx(1)


def test_what_is_not_published_is_not_judged(guard: Guard) -> None:
    names = ("histogram", "class_distance", "confidence", "detections", "agreement")
    bare = outcome(**dict.fromkeys(names))
    assert guard.judge(bare, dataclasses.replace(bare, adapter=BETTER, distance=0.1)).promote
    assert not guard.judge(bare, dataclasses.replace(bare, adapter=BETTER, distance=0.48)).promote
    nothing = dataclasses.replace(bare, distance=None)
    assert not guard.judge(nothing, nothing).promote


def test_a_canary_that_forgets_is_refused(adaptive_bundle: Bundle) -> None:
    better = outcome(BETTER, distance=0.1, confidence=0.75)
    tested = []

    def judged(report: CanaryReport, candidate: Outcome = better) -> Verdict:
        def canary(adapter: np.ndarray) -> CanaryReport:
            tested.append(adapter)
            return report

        return Guard(adaptive_bundle, canary=canary).judge(outcome(), candidate)

    found = judged(CanaryReport(4, 0.5, 0.6, 0.9, True))
    assert found.promote and found.numbers["canary.kept"] == pytest.approx(5 / 6)
    assert (tested[0] == BETTER).all()
    for report in (
        CanaryReport(4, 0.1, 0.6, 0.9, True),
        CanaryReport(4, 0.6, 0.6, 0.1, True),
        CanaryReport(4, 0.6, 0.6, 1.0, False),
    ):
        verdict = judged(report)
        assert not verdict.promote and "the canary keeps" in verdict.reasons[0]
    assert len(tested) == 4
    judged(CanaryReport(4, 0.5, 0.6, 0.9, True), outcome(BETTER))  # refused anyway: no pass spent
    assert len(tested) == 4


def test_after_an_alarm_there_is_a_pause_that_grows(guard: Guard) -> None:
    better = outcome(BETTER, distance=0.1, confidence=0.75)
    pauses = []
    for _ in range(3):
        guard.promoted(BETTER, outcome(BETTER))
        while guard.watch(result(label=1)) is None:
            pass
        pause = 0
        while not guard.judge(outcome(), better).promote:
            assert "after an alarm" in guard.log.recent[-1]["reasons"][0]
            guard.watch(result())
            pause += 1
        pauses.append(pause)
    assert pauses == [30, 60, 120]


def watch(guard: Guard, frames: int, **fields: object):
    for index in range(frames):
        if alarm := guard.watch(result(**fields)):  # type: ignore[arg-type]
            return index + 1, alarm
    return None


WATCHED = {
    "one class": {"label": 2},
    "unsure": {"confidence": 0.3},
    "many objects": {"count": 90},
    "statistics": {"value": 3.0},
    "not finite": {"confidence": float("nan")},
}


@pytest.mark.parametrize("name", WATCHED)
def test_what_turns_bad_is_taken_back(guard: Guard, name: str) -> None:
    used = guard.outcome(BETTER, [guard.evidence(result())])
    guard.promoted(BETTER, used)
    assert watch(guard, 50) is None and (guard.adapter == BETTER).all()
    found = watch(guard, 20, **WATCHED[name])
    assert found is not None and found[0] <= 10
    assert (found[1].adapter == IDENTITY).all() and (guard.adapter == IDENTITY).all()
    assert found[1].reasons and "now.frames" in found[1].numbers
    kinds = [record["kind"] for record in guard.log.recent]
    assert kinds == ["promotion", "alarm", "rollback"]


def test_values_that_are_not_finite_are_an_alarm_at_once(guard: Guard) -> None:
    guard.promoted(BETTER)
    found = watch(guard, 5, confidence=float("inf"))
    assert found is not None and found[0] == 1


def test_the_first_window_sets_the_standard_after_a_restart(guard: Guard) -> None:
    guard.promoted(BETTER)
    assert watch(guard, 12, confidence=0.5) is None
    assert watch(guard, 10, confidence=0.1) is not None


def test_one_bad_frame_is_no_alarm(guard: Guard) -> None:
    guard.promoted(BETTER, guard.outcome(BETTER, [guard.evidence(result())]))
    assert watch(guard, 20) is None
    assert guard.watch(result(label=1)) is None
    assert watch(guard, 20) is None


def test_worse_than_unadapted_is_an_alarm(guard: Guard) -> None:
    guard.promoted(BETTER, guard.outcome(BETTER, [guard.evidence(result(), result())]))
    assert watch(guard, 15) is None
    now = guard.outcome(IDENTITY, [guard.evidence(result(), None)])
    assert guard.watch(result(), unadapted=now) is None
    alarm = guard.watch(result(), unadapted=dataclasses.replace(now, confidence=0.9))
    assert alarm is not None and alarm.reasons[0].startswith("worse than unadapted: confidence")


def test_rollback_goes_back_one_by_one_and_ends_at_the_identity(adaptive_bundle: Bundle) -> None:
    guard = Guard(adaptive_bundle, GuardOptions(keep=2))
    for scale in (1.1, 1.2, 1.3):
        guard.promoted(np.array([scale, 1, 1, 0, 0, 0]))
    guard.followed(np.array([1.31, 1, 1, 0, 0, 0]))
    assert guard.adapter[0] == np.float32(1.31)
    assert guard.rollback()[0] == np.float32(1.2)
    assert (guard.rollback() == IDENTITY).all()
    assert (guard.rollback() == IDENTITY).all()
    guard.promoted(BETTER)
    assert (guard.reset() == IDENTITY).all()


def test_a_fault_freezes_until_it_has_been_gone(guard: Guard) -> None:
    better = outcome(BETTER, distance=0.1, confidence=0.75)
    guard.promoted(BETTER, guard.outcome(BETTER, [guard.evidence(result())]))
    for _ in range(30):
        assert guard.watch(result(label=1), fault="black") is None  # no evidence, so no alarm
    assert guard.frozen == "black"
    assert guard.judge(outcome(), better).reasons == ["frozen: black"]
    for _ in range(9):
        guard.watch(result())
    assert guard.frozen
    guard.watch(result())
    assert guard.frozen is None and guard.judge(outcome(), better).promote
    assert [r["kind"] for r in guard.log.recent if r["kind"] != "judge"] == [
        "promotion",
        "freeze",
        "thaw",
    ]


def test_limits_can_be_set_and_misspelt_ones_are_refused(adaptive_bundle: Bundle) -> None:
    better = outcome(BETTER, distance=0.3, confidence=0.75)
    assert Guard(adaptive_bundle).judge(outcome(), better).promote
    strict = Guard(adaptive_bundle, GuardOptions(limits=Limits(confidence_gain=0.1)))
    assert not strict.judge(outcome(), better).promote
    with pytest.raises(ValueError, match="distance_gian"):
        Limits(distance_gian=0.9)  # type: ignore[call-arg]
