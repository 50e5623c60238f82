"""Drift: the reference is read whole or refused; shifts are told from scenes; alarms are rare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import World
from safetensors.numpy import load_file, save

from edge_runtime.adaptation.changes import Cusum
from edge_runtime.adaptation.drift import DriftMonitor
from edge_runtime.adaptation.reference import FRAMES_KEY, Reference
from edge_runtime.adaptation.source import (
    SourceModel,
    pooled,
    source_scores,
    source_threshold,
    source_thresholds,
)
from edge_runtime.bundle import Bundle, identity_adapter, update_bundle
from edge_runtime.errors import BundleError, InputError


def changed(world: World, tmp_path: Path, **arrays: np.ndarray | None) -> Bundle:
    """The bundle in a folder of its own with arrays of the reference replaced or removed."""
    from colours import make_bundle

    bundle = make_bundle(tmp_path / "changed.bundle")
    found: dict[str, Any] = load_file(bundle.file("reference.safetensors"))
    for key, value in arrays.items():
        name = key.replace("__", ".")
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return update_bundle(bundle, {"reference.safetensors": save(found)})


def test_statistics_split_into_points_and_adapters_join_from_them(world: World) -> None:
    reference = Reference.of(world.bundle)
    mean, var = reference.split(np.arange(12, dtype=np.float32))
    assert mean.tolist() == [0, 1, 2, 6, 7, 8] and var.tolist() == [3, 4, 5, 9, 10, 11]
    assert reference.join(mean, var).tolist() == list(range(12))
    identity = reference.join(np.ones(6), np.zeros(6))
    assert (identity == identity_adapter(world.bundle.manifest)).all()
    assert reference.slices == {"stem": slice(0, 3), "late": slice(3, 6)}
    with pytest.raises(InputError, match="6 values, expected 12"):
        reference.split(np.zeros(6, np.float32))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"stem__mean": None}, "'stem.mean' is absent"),
        ({"late__var": np.ones(4, np.float32)}, r"'late.var' is of shape \(4,\)"),
        ({"stem__var": np.full(3, np.nan, np.float32)}, "not finite"),
        ({"stem__var": np.full(3, -1, np.float32)}, "not finite"),
        ({FRAMES_KEY.replace(".", "__"): np.ones((9, 5), np.float32)}, r"shape \(9, 5\)"),
    ],
)
def test_a_reference_of_another_network_is_refused(
    world: World, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Reference.of(changed(world, tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64])
def test_a_broken_reference_is_refused(world: World, tmp_path: Path, content: bytes) -> None:
    bundle = changed(world, tmp_path)
    bundle = update_bundle(bundle, {"reference.safetensors": content})
    with pytest.raises(BundleError, match="reference.safetensors"):
        Reference.of(bundle)


def test_without_frames_of_the_source_the_canary_sets_the_threshold(
    world: World, tmp_path: Path
) -> None:
    bundle = changed(world, tmp_path, **{FRAMES_KEY.replace(".", "__"): None})
    reference = Reference.of(bundle)
    assert reference.frames is not None and reference.frames.shape == (8, 12)
    assert source_threshold(reference) > 0


def test_the_threshold_is_passed_as_often_as_stated(world: World) -> None:
    """On windows drawn from the law the threshold assumes, with 1 in 50 allowed."""
    reference = Reference.of(world.bundle)
    assert reference.frames is not None
    scores = source_scores(reference)
    loose, strict = (source_threshold(reference, false_alarm_rate=r) for r in (0.02, 1e-4))
    assert np.median(scores) < loose < strict
    logs = np.log(scores)
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    drawn = np.exp(np.random.default_rng(0).normal(np.median(logs), spread, 200_000))
    assert (drawn > loose).mean() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("wrong", [0, 0.5, -1, np.nan])
def test_a_rate_that_is_none_is_refused(world: World, wrong: float) -> None:
    with pytest.raises(InputError, match="false_alarm_rate"):
        source_threshold(Reference.of(world.bundle), false_alarm_rate=wrong)


def test_pooling_is_that_of_the_mixture() -> None:
    rng = np.random.default_rng(0)
    groups = rng.normal([[0], [3], [-1]], [[1], [2], [0.5]], (3, 1000))
    mean, var = pooled(groups.mean(1)[:, None], groups.var(1)[:, None])
    assert mean[0] == pytest.approx(groups.mean()) and var[0] == pytest.approx(groups.var())


def test_cusum_needs_several_values_and_says_when_it_began() -> None:
    sum_ = Cusum(slack=0.5, limit=2)
    assert not any(sum_.update(v) for v in [0.1, 99, 0.1, 0.2, -9, 0.3])  # one outlier
    assert [sum_.update(1.5) for _ in range(3)] == [False, False, True]
    assert sum_.length == 3


def statistics_of(world: World, gain: float) -> np.ndarray:
    reference = Reference.of(world.bundle)
    assert reference.frames is not None
    mean, var = reference.split(reference.frames)
    return np.concatenate([gain * mean[:, :3], gain**2 * var[:, :3], mean[:, 3:], var[:, 3:]], 1)


def test_a_shift_is_declared_once_it_stays_and_its_end_too(world: World) -> None:
    monitor = DriftMonitor(Reference.of(world.bundle))
    home, dark = statistics_of(world, 1), statistics_of(world, 0.5)
    assert {monitor.update(s).state for s in home} == {"normal"}
    drifts = [monitor.update(s) for s in dark[:30]]
    declared = [d.event for d in drifts].index("shift")
    assert declared == 2 and drifts[-1].state == "shifted"
    assert 3 <= drifts[declared].since <= 4  # the last frame of home may have begun it
    drifts = [monitor.update(s) for s in home[:30]]
    assert "return" in [d.event for d in drifts] and drifts[-1].state == "normal"


def test_what_comes_back_by_itself_is_a_change_of_scene(world: World) -> None:
    monitor = DriftMonitor(Reference.of(world.bundle))
    home, dark = statistics_of(world, 1), statistics_of(world, 0.5)
    stream = [*home[:30], *dark[:2], *home[30:40]]
    drifts = [monitor.update(s) for s in stream]
    assert {d.state for d in drifts} == {"normal"}
    assert [d.event for d in drifts].count("scene change") == 1


def test_an_adapter_does_not_change_the_score(world: World) -> None:
    """Statistics of later points show in `per_point` alone."""
    reference = Reference.of(world.bundle)
    one, other = DriftMonitor(reference), DriftMonitor(reference)
    for row in statistics_of(world, 1)[:10]:
        adapted = row.copy()
        adapted[6:9] += 5
        a, b = one.update(row), other.update(adapted)
    assert a.score == b.score and b.per_point["late"] > a.per_point["late"]
    assert a.signature.shape == (6,)


def test_statistics_that_are_not_finite_are_refused(world: World) -> None:
    with pytest.raises(InputError, match="not finite"):
        DriftMonitor(Reference.of(world.bundle)).update(np.full(12, np.nan, np.float32))


def test_what_scenes_do_together_is_near_and_what_none_does_is_far(world: World) -> None:
    """Two windows equally far channel by channel; only one of them is moved as scenes are."""
    source = SourceModel(Reference.of(world.bundle))
    reference = Reference.of(world.bundle)
    assert reference.frames is not None
    mean, var = reference.split(reference.frames)
    found = np.stack(
        [source.features(mean[i : i + 10, :3], var[i : i + 10, :3]) for i in range(54)]
    )
    values, vectors = np.linalg.eigh(np.cov(found.T))
    common, rare = (source.centre + 0.05 * vectors[:, i] for i in (-1, 0))
    assert values[-1] > 4 * values[0]
    assert source.distance(rare) > 2 * source.distance(common)
    assert source.distance(source.centre) == 0
    assert source.distance(common, other=common) == 0


def test_too_few_frames_of_the_source_are_refused(world: World, tmp_path: Path) -> None:
    few = np.ones((3, 12), np.float32)
    reference = Reference.of(changed(world, tmp_path, **{FRAMES_KEY.replace(".", "__"): few}))
    with pytest.raises(InputError, match="too few statistics"):
        DriftMonitor(reference)


def test_few_frames_are_judged_by_what_few_frames_of_the_source_differ(world: World) -> None:
    reference = Reference.of(world.bundle)
    usual = source_thresholds(reference)
    assert usual.shape == (10,) and usual[-1] == pytest.approx(source_threshold(reference))
    assert usual[0] > 2 * usual[-1]
    for start in range(0, 60, 3):  # a stream may begin anywhere at home
        monitor = DriftMonitor(reference)
        states = {monitor.update(s).state for s in statistics_of(world, 1)[start:][:10]}
        assert states == {"normal"}


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_window_does_not_mix_home_with_elsewhere(world: World, gain: float) -> None:
    """Neither a change nor its end is diluted by the frames before it."""
    monitor = DriftMonitor(Reference.of(world.bundle))
    home, away = statistics_of(world, 1), statistics_of(world, gain)
    fresh = DriftMonitor(Reference.of(world.bundle)).update(away[0]).score
    for statistics in home[:30]:
        before = monitor.update(statistics).score
    assert monitor.update(away[0]).score == pytest.approx(fresh)
    assert monitor.update(home[30]).score < 0.1 * fresh and before < 0.1 * fresh
