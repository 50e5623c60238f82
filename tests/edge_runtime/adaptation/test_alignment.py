"""Alignment: the map is right, the loop closes, the strategies are found by name."""

from __future__ import annotations

import numpy as np
import pytest
from colours import IDENTITY, World

from edge_runtime.adaptation.alignment import Alignment, Strength, aligning
from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.strategies import create_strategy, strategy_names
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.perception import Perception

SHIFTED = Drift(1.0, "shifted", 1)
NORMAL = Drift(0.0, "normal", 1)


def dimmed(frame: Frame, gains: tuple[float, float, float]) -> Frame:
    image = np.clip(frame.image * np.array(gains), 0, 255).astype(np.uint8)
    return Frame(image, frame.stamp_ns, frame.frame_id)


def test_the_map_takes_mean_and_deviation_as_far_as_asked(world: World) -> None:
    reference = Reference.of(world.bundle)
    rng = np.random.default_rng(0)
    mean = reference.mean + rng.normal(0, 0.1, 6)
    var = reference.var * rng.uniform(0.3, 3, 6)
    for strength in (Strength(1, 1, 1), Strength(0.3, 0.5, 1, first=1, last=2)):
        moved, amplified = strength.over(reference)
        scale, shift = aligning(reference, mean, var, strength, 10.0)
        aimed = mean + moved * (reference.mean - mean)
        assert scale * mean + shift == pytest.approx(aimed, abs=1e-6)
        ratio = np.sqrt(reference.var / var)
        exponent = np.where(ratio > 1, amplified, strength.attenuate)
        assert scale == pytest.approx(ratio**exponent, abs=1e-6)
    scale, shift = aligning(reference, mean, var, strength, 10.0, trust=0)
    assert moved[0] == 0.3 and moved[-1] == 0.6 and amplified[-1] == 1
    assert (scale == 1).all() and shift == pytest.approx(0)


def test_a_dead_channel_is_not_blown_up(world: World) -> None:
    reference = Reference.of(world.bundle)
    scale, shift = aligning(reference, reference.mean, np.zeros(6), Strength(1, 1, 1), 3.0)
    assert scale.max() <= 3.0 and np.isfinite(shift).all()


def run(world: World, strategy: Alignment, gains: tuple[float, float, float]) -> np.ndarray:
    """The adapter after the world's frames in coloured light, in closed loop."""
    perception = Perception(world.bundle, threads=1)
    for frame in world.frames:
        frame = dimmed(frame, gains)
        adapter = strategy.observe(frame, perception(frame), SHIFTED)
        assert adapter is not None
        perception.adapter = adapter
    perception.close()
    return adapter


def test_in_closed_loop_two_points_at_half_strength_undo_three_quarters(world: World) -> None:
    """The second point sees what the first has left, and takes half of that."""
    gains = (1.0, 0.6, 0.3)
    strategy = Alignment(
        world.bundle, mean=0.5, amplify=0.5, first=1, last=1, momentum=0.2, prior=0
    )
    adapter = run(world, strategy, gains)
    one, two = (adapter[:3], adapter[3:6]), (adapter[6:9], adapter[9:12])
    home = np.mean([f.image.mean((0, 1)) for f in world.frames], axis=0) / 255
    seen = home * gains
    after = (seen * one[0] + one[1]) * two[0] + two[1]
    source = Reference.of(world.bundle).mean[:3]
    left = np.abs(after - source) / np.abs(seen - source)
    assert left[1:] == pytest.approx(0.25, abs=0.08)


def test_alignment_mends_coloured_light(world: World) -> None:
    gains = (1.0, 0.6, 0.3)
    adapter = run(world, Alignment(world.bundle, mean=0.8, amplify=0.8), gains)
    perception = Perception(world.bundle, threads=1)
    right = []
    for values in (IDENTITY, adapter):
        perception.adapter = values
        pairs = zip(world.frames, world.masks, strict=True)
        right.append(
            np.mean(
                [(perception(dimmed(f, gains)).segmentation.mask == m).mean() for f, m in pairs]
            )
        )
    perception.close()
    assert right[0] < 0.6 and right[1] > 0.8


def test_nothing_is_proposed_while_nothing_is_shifted(world: World) -> None:
    strategy = create_strategy("align", world.bundle)
    result = Result(0, "", None, None, np.ones(12, np.float32))
    assert strategy.observe(world.frames[0], result, NORMAL) is None
    assert strategy.observe(world.frames[0], result, SHIFTED) is not None


def test_it_goes_on_from_an_adapter_that_it_is_given(world: World) -> None:
    first = Alignment(world.bundle)
    adapter = run(world, first, (1.0, 0.6, 0.4))
    second = Alignment(world.bundle, prior=0)
    second.reset(adapter)
    assert second.adapter() == pytest.approx(adapter)
    second.reset()
    assert second.adapter() == pytest.approx(IDENTITY)


def test_strategies_are_found_by_name_and_refuse_unknown_options(world: World) -> None:
    assert {"none", "input", "align"} <= set(strategy_names())
    with pytest.raises(InputError, match="'algin' is unknown; expected .*align"):
        create_strategy("algin", world.bundle)
    with pytest.raises(InputError, match="'align'.*strenght"):
        create_strategy("align", world.bundle, strenght=1)
    for wrong in ({"mean": -1}, {"momentum": 2}, {"most_scale": 0.5}, {"last": -1}):
        with pytest.raises(InputError, match="must|expected 0 to 1"):
            create_strategy("align", world.bundle, **wrong)


def test_input_alignment_gives_the_image_the_colours_of_the_source(world: World) -> None:
    strategy = create_strategy("input", world.bundle)
    gains = (1.0, 0.5, 0.25)
    for frame in world.frames:
        prepared = strategy.prepare(dimmed(frame, gains))  # type: ignore[attr-defined]
    seen = np.mean([f.image.mean((0, 1)) for f in world.frames], axis=0)
    assert np.abs(prepared.image.mean((0, 1)) - seen).max() < 35
    assert np.abs(dimmed(frame, gains).image.mean((0, 1)) - seen).max() > 60
