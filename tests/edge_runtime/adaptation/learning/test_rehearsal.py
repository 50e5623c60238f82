"""Looks that explain a place, and an adapter taught in them that must pass a trial."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.learner import Learner
from edge_runtime.adaptation.looks import explain, measure, paint
from edge_runtime.adaptation.refinement.rehearsal import TaughtAdapter
from edge_runtime.adaptation.replay import Adapting
from edge_runtime.adaptation.strategies import Refined, create_strategy
from edge_runtime.bundle import Bundle, create_bundle, identity_adapter
from edge_runtime.errors import BundleError, InputError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception
from edge_runtime.prediction import open_frames

SHIFTED = Drift(1.0, "shifted", 1)


def noisy(image: np.ndarray, seed: int, sigma: float = 40) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes(world: Path) -> np.ndarray:
    return np.stack([f.image for f in open_frames(str(world.parent / "images"))])


@pytest.fixture(scope="module")
def quick(student_bundle: Bundle) -> TaughtAdapter:
    return TaughtAdapter(student_bundle, collected=4, steps=24, pace=24)


def test_noise_is_measured_as_noise_and_light_as_light(scenes: np.ndarray) -> None:
    place = np.stack([noisy(x, i) for i, x in enumerate(scenes)])
    style = measure(place, scenes, light=True)
    assert np.sqrt(style.noise.mean()) == pytest.approx(40, rel=0.15)
    middle = slice(100, 160)  # grey levels that the scenes have
    assert np.abs(style.curves[:, middle] - np.arange(256)[middle]).mean() < 12
    dim = measure((scenes * 0.3).astype(np.uint8), scenes, light=True)
    assert np.abs(dim.curves[:, middle] - 0.3 * np.arange(256)[middle]).mean() < 4
    assert np.sqrt(dim.noise.mean()) < 3


def test_the_simplest_looks_that_suffice_are_believed(scenes: np.ndarray) -> None:
    darker = (scenes[:8] * 0.9).astype(np.uint8)
    near = explain(darker, scenes[8:], lambda made: 0.9)
    assert not near.lit
    np.testing.assert_array_equal(near.style.curves, np.tile(np.arange(256), (3, 1)))

    def by_mean(made: np.ndarray) -> float:
        return float(abs(made.mean() - place.mean()))

    place = (scenes[:8] * 0.3).astype(np.uint8)
    far = explain(place, scenes[8:], by_mean)
    assert far.suffices and far.lit and np.abs(far.style.curves - np.arange(256)).mean() > 20
    hopeless = explain(place, scenes[8:], lambda made: 50.0)
    assert not hopeless.suffices
    np.testing.assert_array_equal(hopeless.style.curves, np.tile(np.arange(256), (3, 1)))


def test_painted_frames_are_a_cameras(scenes: np.ndarray) -> None:
    style = measure((scenes[:8] * 0.02).astype(np.uint8), scenes[8:], light=True)
    made = paint(style, scenes[0], np.random.default_rng(0))
    assert made.dtype == np.uint8 and made.max() <= 8


def test_a_round_teaches_what_labels_show_and_nothing_else(
    quick: TaughtAdapter, scenes: np.ndarray
) -> None:
    quick.reset()
    weights = {k: v.clone() for k, v in quick.student.state_dict().items()}
    identity = identity_adapter(quick.bundle.manifest)
    place = [noisy(x, i) for i, x in enumerate(scenes[:4])]
    assert [quick.learn(image, identity) for image in place] == [None] * 4
    first = [quick.learn(place[0], identity) for _ in range(2)]
    taught = next(a for a in first if a is not None)
    assert np.isfinite(taught).all() and np.abs(taught - identity).max() > 0.05
    for key, value in quick.student.state_dict().items():
        assert (value == weights[key]).all()
    scale, _ = quick.reference.split(taught)
    assert scale.min() >= 1 / 3.001 and scale.max() <= 3.001
    quick.reset()
    again = [quick.learn(image, identity) for image in [*place, place[0], place[0]]]
    np.testing.assert_array_equal(next(a for a in again if a is not None), taught)


def test_the_next_round_waits_for_twice_as_many_frames(
    quick: TaughtAdapter, scenes: np.ndarray
) -> None:
    quick.reset()
    identity = identity_adapter(quick.bundle.manifest)
    ended = [i for i in range(24) if quick.learn(noisy(scenes[i % 16], i), identity) is not None]
    assert ended[0] <= 6 and ended[1] - ended[0] in (9, 10)


def test_a_place_that_nothing_explains_is_not_learnt_from(
    quick: TaughtAdapter, scenes: np.ndarray
) -> None:
    quick.reset()
    rng = np.random.default_rng(0)
    stripes = np.zeros_like(scenes[0])
    stripes[::2] = 255
    for _ in range(40):
        assert quick.learn(np.roll(stripes, rng.integers(2), axis=0), None) is None


def test_a_bundle_without_labels_is_refused(student_bundle: Bundle, tmp_path: Path) -> None:
    fields = student_bundle.manifest.model_dump(exclude={"files", "schema_version"})
    files: dict[str, bytes | Path] = {
        n: student_bundle.file(n) for n in student_bundle.manifest.files
    }
    with np.load(student_bundle.file("canary.npz")) as canary:
        kept = {k: v for k, v in canary.items() if k != "masks"}
    np.savez(tmp_path / "canary.npz", **kept)
    files["canary.npz"] = tmp_path / "canary.npz"
    bundle = create_bundle(tmp_path / "blind.bundle", fields, files)
    with pytest.raises(BundleError, match="no usable labels 'masks'"):
        create_strategy("align+rehearsal", bundle)
    with pytest.raises(InputError, match="steps 0"):
        create_strategy("align+rehearsal", student_bundle, steps=0)


def test_the_exam_is_repeatable_and_tells_a_broken_adapter(
    quick: TaughtAdapter, scenes: np.ndarray
) -> None:
    style = measure(np.stack([noisy(x, i) for i, x in enumerate(scenes[:4])]), scenes, False)

    def look(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return paint(style, image, rng)

    good = quick.exam(quick.source, look)
    assert good == quick.exam(quick.source, look) and 0 < good <= 1
    assert quick.exam(quick.source * 0.1, look) < good - 0.1


def test_what_its_exam_speaks_against_is_not_offered(
    student_bundle: Bundle, scenes: np.ndarray
) -> None:
    method = TaughtAdapter(student_bundle, collected=2, steps=4, pace=8, lr=5.0)  # breaks anything
    identity = identity_adapter(student_bundle.manifest)
    place = [noisy(x, i, 12) for i, x in enumerate(scenes)]
    assert [method.learn(image, identity) for image in place[:3]] == [None] * 3
    assert method.gain < 0


def test_a_noisy_stream_is_refined_through_the_guard(
    student_bundle: Bundle, scenes: np.ndarray
) -> None:
    perception = Perception(student_bundle, threads=1)
    quick = {"collected": 4, "steps": 24, "pace": 24}
    learner = Learner(student_bundle, "align+rehearsal", threshold=0.5, **quick)
    stream = Adapting(perception, learner)
    for index in range(100):
        stream(Frame(noisy(scenes[index % len(scenes)], index, 80), index, ""))
    happened = [what for _, what in stream.trace.events]
    assert "promoted" in happened and {"refined", "not refined"} & set(happened)
    if "refined" in happened:
        np.testing.assert_array_equal(learner.adapter, learner.strategy._held)


def test_learning_apart_survives_a_kill(student_bundle: Bundle, scenes: np.ndarray) -> None:
    options = {"collected": 3, "steps": 24, "pace": 1, "duty": 1.0}
    strategy = create_strategy("align+rehearsal", student_bundle, apart=True, **options)
    identity, killed = identity_adapter(student_bundle.manifest), False
    found: Refined | None = None
    deadline = time.monotonic() + 300
    try:
        count = 0
        while found is None and time.monotonic() < deadline:
            image = noisy(scenes[count % len(scenes)], count % 50)
            found = strategy.refine(Frame(image, 0, ""), identity)
            health = strategy.learning.worker.health
            if health.state in ("working", "resting") and not killed:
                os.kill(health.pid, signal.SIGKILL)
                killed = True
            count += 1
            time.sleep(0.002)
        assert killed and strategy.learning.worker.health.failures == 1
        assert found is not None and np.isfinite(found.adapter).all()
        assert np.abs(found.adapter - identity).max() > 0.01
        strategy.reset(found.adapter)
        held = strategy.observe(Frame(scenes[0], 0, ""), None, SHIFTED)
        np.testing.assert_array_equal(held, found.adapter)
    finally:
        strategy.close()


def test_labels_in_a_new_light_speak_against_an_adapter_and_never_for_it(
    quick: TaughtAdapter, scenes: np.ndarray
) -> None:
    quick.reset()
    identity = identity_adapter(quick.bundle.manifest)
    place = [(x * 0.35).astype(np.uint8) for x in scenes]
    for image in place[:4]:
        assert quick.learn(image, identity) is None
    assert quick._looks is not None and quick._looks.lit
    looks = quick._looks
    taught = [quick.learn(place[0], identity) for _ in range(2)]
    gained = quick.exam(quick.adapter.detach(), looks.paint) - quick.exam(quick.source, looks.paint)
    assert quick.gain == min(gained, 0)
    assert any(a is not None for a in taught) == (gained >= 0)
