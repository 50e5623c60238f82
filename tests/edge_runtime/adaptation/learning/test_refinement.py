"""Gradient methods tune the adapter and nothing else, and say so when they cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.refinement import METHODS
from edge_runtime.adaptation.refinement.consistency import after, index_pairs
from edge_runtime.adaptation.refinement.entropy import entropy, samples
from edge_runtime.adaptation.strategies import create_strategy, strategy_names
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception
from edge_runtime.prediction import open_frames

SHIFTED = Drift(1.0, "shifted", 1)
FRAMES = 6
QUICK = {"rotta": {"capacity": 3}}  # learns once its memory is full
ALIGNED = {"align+ssl", "align+rehearsal"}


@pytest.fixture(scope="module")
def frames(dim_world: Path) -> list[Frame]:
    return list(open_frames(str(dim_world.parent / "images"), limit=FRAMES))


def follow(name: str, bundle: Bundle, frames: list[Frame], **options: object) -> list[np.ndarray]:
    """The adapters that a strategy proposes over a stream, each in use from the next frame on."""
    strategy = create_strategy(name, bundle, **{**QUICK.get(name, {}), **options})
    perception, proposed = Perception(bundle), []
    for frame in frames:
        adapter = strategy.observe(frame, perception(frame), SHIFTED)
        if adapter is not None:
            proposed.append(adapter)
            perception.adapter = adapter
    return proposed


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_method_moves_the_adapter_a_little_and_repeatably(
    name: str, student_bundle: Bundle, frames: list[Frame]
) -> None:
    identity = identity_adapter(student_bundle.manifest)
    first = follow(name, student_bundle, frames)
    assert first, "it should have learnt from these frames"
    moved = np.abs(first[-1] - identity).max()
    assert first[-1].dtype == np.float32 and first[-1].shape == identity.shape
    assert np.isfinite(first[-1]).all() and 0 < moved < 3
    np.testing.assert_array_equal(follow(name, student_bundle, frames)[-1], first[-1])


@pytest.mark.parametrize("name", sorted(set(METHODS) - ALIGNED))
def test_weights_stay_and_reset_forgets(
    name: str, student_bundle: Bundle, frames: list[Frame]
) -> None:
    method = create_strategy(name, student_bundle, **QUICK.get(name, {}))
    weights = {k: v.clone() for k, v in method.student.state_dict().items()}
    result = Perception(student_bundle)(frames[0])
    found = [method.observe(f, result, SHIFTED) for f in frames]
    for key, value in method.student.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)
    method.reset()
    again = [method.observe(f, result, SHIFTED) for f in frames]
    for one, other in zip(found, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_array_equal(one, other)
    start = identity_adapter(student_bundle.manifest) * 0.9
    method.reset(start)
    np.testing.assert_array_equal(method.adapter.detach().numpy(), start)


def test_tent_lowers_the_entropy_it_minimises(student_bundle: Bundle, frames: list[Frame]) -> None:
    method = create_strategy("tent", student_bundle, lr=1e-3)
    image = frames[0].image

    def now() -> float:
        with torch.no_grad():
            return float(entropy(samples(method.forward(image))).mean())

    before = now()
    for _ in range(10):
        method.learn(image)
    assert now() < before


def test_sar_starts_again_when_it_collapses(student_bundle: Bundle, frames: list[Frame]) -> None:
    method = create_strategy("sar", student_bundle, lr=1e-3, collapse=10.0)
    learnt = method.learn(frames[0].image)
    np.testing.assert_array_equal(learnt, identity_adapter(student_bundle.manifest))


def test_cotta_restores_a_share(student_bundle: Bundle, frames: list[Frame]) -> None:
    identity = identity_adapter(student_bundle.manifest)
    method = create_strategy("cotta", student_bundle, restored=1.0)
    np.testing.assert_array_equal(method.learn(frames[0].image), identity)


def test_a_residual_comes_after_its_base(student_bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    size = student_bundle.manifest.adapter_size
    base, residual = (torch.from_numpy(rng.normal(1, 1, size).astype(np.float32)) for _ in "ab")
    places = index_pairs(student_bundle)
    whole = after(base, residual, places)
    channels = student_bundle.manifest.student.adapter[0].channels
    x = torch.linspace(-1, 1, channels)

    def apply(adapter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return adapter[:channels] * x + adapter[channels : 2 * channels]

    torch.testing.assert_close(apply(whole, x), apply(residual, apply(base, x)))
    identity = torch.from_numpy(identity_adapter(student_bundle.manifest))
    torch.testing.assert_close(after(base, identity, places), base)


def test_ssl_does_nothing_while_nothing_is_shifted(
    student_bundle: Bundle, frames: list[Frame]
) -> None:
    strategy = create_strategy("align+ssl", student_bundle)
    result = Perception(student_bundle)(frames[0])
    assert strategy.observe(frames[0], result, Drift(0.0, "normal", 9)) is None


def test_ssl_learns_apart_from_perception(student_bundle: Bundle, frames: list[Frame]) -> None:
    """In a process of its own: every frame is aligned at once, the residual follows."""
    strategy = create_strategy("align+ssl", student_bundle, apart=True, duty=1.0)
    plain = create_strategy("align", student_bundle)
    try:
        result = Perception(student_bundle)(frames[0])
        found = strategy.observe(frames[0], result, SHIFTED)
        np.testing.assert_array_equal(found, plain.observe(frames[0], result, SHIFTED))
        assert strategy.learning.worker is not None
        for _ in range(60_000):
            strategy.observe(frames[1], result, SHIFTED)
            if strategy.learning.worker.health.learnt >= 2:
                break
            strategy.learning.worker._closing.wait(0.005)
        assert (
            strategy.learning.worker.health.learnt >= 2
            and strategy.learning.worker.health.failures == 0
        )
        strategy.observe(frames[1], result, SHIFTED)
        assert (strategy._residual != identity_adapter(student_bundle.manifest)).any()
    finally:
        strategy.close()


def test_unknown_options_are_named(student_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="tent.*no_such"):
        create_strategy("tent", student_bundle, no_such=1)
    with pytest.raises(InputError, match="every is 0"):
        create_strategy("tent", student_bundle, every=0)


def test_without_torch_they_are_listed_and_say_what_to_install(student_bundle: Bundle) -> None:
    assert set(METHODS) < set(strategy_names())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edge_runtime.adaptation.strategies import create_strategy\n"
        "from edge_runtime.bundle import open_bundle\n"
        f"bundle = open_bundle({str(student_bundle.path)!r})\n"
        "create_strategy('align', bundle)\n"
        "create_strategy('tent', bundle)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError" in done.stderr and "fieldsight[adapt]" in done.stderr


def test_aligning_does_not_load_torch(student_bundle: Bundle) -> None:
    code = (
        "import sys\n"
        "from edge_runtime.adaptation.strategies import create_strategy\n"
        "from edge_runtime.bundle import open_bundle\n"
        f"create_strategy('align', open_bundle({str(student_bundle.path)!r}))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
