"""The predictor: what a descriptor tells, which files are refused, and how `align` uses it."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest
from colours import IDENTITY, World, scene
from safetensors.numpy import save

from edge_runtime.adaptation.alignment import Alignment
from edge_runtime.adaptation.descriptor import SIZE, describe
from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.guard import Guard
from edge_runtime.adaptation.predicted import PredictedAlignment
from edge_runtime.adaptation.predictor import FILE, MOST_SCALE, Predictor, adapter_order
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.strategies import Strategy, create_strategy
from edge_runtime.adaptation.trial import Trial, probe_of
from edge_runtime.bundle import Bundle, open_bundle, update_bundle
from edge_runtime.errors import BundleError, InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.perception import Perception

SHIFTED = Drift(1.0, "shifted", 1)
NORMAL = Drift(0.0, "normal", 1)
TOP = 9  # of the descriptor, log quantile of the first channel's median: 3 * 7 + 3 * 3


def arrays(seed: int = 0, width: int = 5) -> dict[str, np.ndarray]:
    """A predictor of the world of colours with random weights."""
    rng = np.random.default_rng(seed)
    sizes = [SIZE, width, width, 12]
    found = {
        "centre": np.zeros(SIZE), "spread": np.ones(SIZE), "unit": np.full(6, 0.1)
    }  # fmt: skip
    for layer in range(3):
        found[f"{layer}.weight"] = rng.normal(0, 0.2, (sizes[layer + 1], sizes[layer]))
        found[f"{layer}.bias"] = rng.normal(0, 0.1, sizes[layer + 1])
    return {name: values.astype(np.float32) for name, values in found.items()}


def with_predictor(world: World, folder: Path, content: bytes) -> Bundle:
    """A copy of the world's bundle with a predictor."""
    path = folder / "taught.bundle"
    shutil.copytree(world.bundle.path, path)
    return update_bundle(open_bundle(path), {FILE: content})


@pytest.fixture
def taught(world: World, tmp_path: Path) -> Bundle:
    return with_predictor(world, tmp_path, save(arrays()))


def test_a_descriptor_tells_noise_from_blur_and_light() -> None:
    image = scene(0)
    rng = np.random.default_rng(0)
    noisy = np.clip(image + rng.normal(0, 25, image.shape), 0, 255).astype(np.uint8)
    plain, dark = describe(image), describe((image * 0.4).astype(np.uint8))
    noise, blur = describe(noisy), describe(cv2.GaussianBlur(image, (0, 0), 2))
    assert plain.shape == (SIZE,) and plain.dtype == np.float32
    assert describe(image) == pytest.approx(plain, abs=0)
    tones, fine = slice(0, 42), slice(42, 45)
    assert np.abs(noise[tones] - plain[tones]).max() < 0.06  # averaged out of what tells the light
    assert (dark[:21] < 0.5 * plain[:21]).all()
    assert (noise[fine] > plain[fine] + 0.3).all() and (blur[fine] < plain[fine] - 0.3).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 60, 3), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_a_descriptor_of_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected"):
        describe(image)


def test_flat_and_black_images_have_finite_descriptors(taught: Bundle) -> None:
    predictor = Predictor.of(taught)
    assert predictor is not None
    for level in (0, 128, 255):
        found = predictor(describe(np.full((32, 32, 3), level, np.uint8)))
        assert np.isfinite(found).all()


def test_values_lie_where_the_network_reads_them(world: World) -> None:
    reference = Reference.of(world.bundle)
    scale, shift = np.arange(6.0) + 1, -np.arange(6.0)
    order = adapter_order([point.channels for point in reference.points])
    joined = np.concatenate([scale, shift])[order]
    assert joined == pytest.approx(reference.join(scale, shift))


def test_scales_are_bounded_however_strange_the_looks(taught: Bundle) -> None:
    predictor, reference = Predictor.of(taught), Reference.of(taught)
    assert predictor is not None
    for value in (-1e9, 1e9):
        scale, shift = reference.split(predictor(np.full(SIZE, value, np.float32)))
        assert (scale <= MOST_SCALE * 1.001).all() and (scale >= 0.999 / MOST_SCALE).all()
        assert np.isfinite(shift).all()


def test_a_bundle_without_a_predictor_has_none(world: World) -> None:
    assert Predictor.of(world.bundle) is None


def broken(name: str, values: np.ndarray | None) -> bytes:
    changed = arrays()
    if values is None:
        del changed[name]
    else:
        changed[name] = values
    return save(changed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (save(arrays())[:-40], "cannot be read"),
        (b"\xff" * 200, "cannot be read"),
        (broken("unit", None), "'unit' is absent"),
        (broken("unit", np.ones(7, np.float32)), r"'unit' is float32 \(7,\), expected"),
        (broken("0.weight", np.ones((5, 3), np.float32)), "'0.weight' is"),
        (broken("2.bias", np.ones(12)), "'2.bias' is float64"),
        (broken("1.weight", np.full((5, 5), np.nan, np.float32)), "not finite"),
        (broken("1.bias", np.zeros((0,), np.float32)), "'1.weight' is"),
        (broken("spread", np.zeros(SIZE, np.float32)), "not above 0"),
    ],
)
def test_a_file_that_is_no_predictor_of_the_network_is_refused(
    world: World, tmp_path: Path, content: bytes, said: str
) -> None:
    bundle = with_predictor(world, tmp_path, content)
    with pytest.raises(BundleError, match=said):
        create_strategy("align", bundle)


def test_align_uses_the_predictor_where_there_is_one(world: World, taught: Bundle) -> None:
    assert isinstance(create_strategy("align", taught), PredictedAlignment)
    assert isinstance(create_strategy("align", taught, predicted=False), Alignment)
    assert isinstance(create_strategy("align", world.bundle), Alignment)
    with pytest.raises(InputError, match="no predictor"):
        create_strategy("align", world.bundle, predicted=True)
    with pytest.raises(InputError, match="strategy 'align'"):
        create_strategy("align", taught, amplify=0.5)  # of the closed form
    for options in ({"momentum": 0}, {"aligned": 2}, {"every": 0}, {"settled": -1}):
        with pytest.raises(InputError, match="expected|must"):
            create_strategy("align", taught, **options)


def seen(image: np.ndarray) -> tuple[Frame, Result]:
    return Frame(image, 0, ""), Result(0, "", None, None, None, {})


def test_it_follows_the_mean_of_the_looks_while_the_world_is_shifted(taught: Bundle) -> None:
    predictor = read(taught)
    strategy = PredictedAlignment(taught, predictor, settled=3, every=4)
    images = [scene(seed) for seed in range(11)]
    assert strategy.observe(*seen(images[0]), NORMAL) is None
    found = [strategy.observe(*seen(image), SHIFTED) for image in images]
    looks = [describe(image) for image in images]
    for count in (1, 2, 3):
        expected = predictor(np.mean(looks[:count], axis=0))
        assert found[count - 1] == pytest.approx(expected, abs=1e-5)
    assert [index for index, adapter in enumerate(found) if adapter is not None] == [0, 1, 2, 3, 7]
    strategy.reset()
    assert strategy.observe(*seen(images[0]), SHIFTED) == pytest.approx(found[0], abs=0)


def read(bundle: Bundle) -> Predictor:
    predictor = Predictor.of(bundle)
    assert predictor is not None
    return predictor


def test_a_recalled_adapter_is_left_gradually(taught: Bundle) -> None:
    strategy, given = PredictedAlignment(taught, read(taught)), IDENTITY + 5
    strategy.reset(given)
    first = strategy.observe(*seen(scene(0)), SHIFTED)
    assert first is not None
    assert (
        np.abs(first - given).max() < 0.1 * np.abs(read(taught)(describe(scene(0))) - given).max()
    )


def test_frames_of_any_size_are_seen_as_the_network_sees_them(taught: Bundle) -> None:
    strategy = PredictedAlignment(taught, read(taught))
    large = cv2.resize(scene(0), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found = strategy.observe(*seen(large), SHIFTED)
    strategy.reset()
    assert found == pytest.approx(strategy.observe(*seen(scene(0)), SHIFTED), abs=1e-5)


def test_looks_do_not_depend_on_how_the_image_is_fitted(taught: Bundle) -> None:
    wide = cv2.resize(scene(0), (128, 48), interpolation=cv2.INTER_NEAREST)
    strategy = PredictedAlignment(taught, read(taught))
    stretched = strategy.predict(Frame(wide, 0, ""))
    fields = {"input": {**taught.manifest.input.model_dump(), "resize": "letterbox"}}
    boxed = PredictedAlignment(update_bundle(taught, {}, fields), read(taught))
    assert boxed.predict(Frame(wide, 0, "")) == pytest.approx(stretched, abs=0)
    assert stretched == pytest.approx(strategy.predictor(describe(scene(0))), abs=1e-2)


@pytest.mark.parametrize("held", [1, 3])
def test_a_trial_finds_it_without_a_forward_pass(taught: Bundle, held: int) -> None:
    perception, passes = Perception(taught, threads=1), []
    frames: deque[tuple[Frame, Result]] = deque(maxlen=3)
    strategy: Strategy = create_strategy("align", taught)

    def see() -> None:
        frame = Frame((scene(len(frames)) * 0.5).astype(np.uint8), 0, "")
        frames.append((frame, perception(frame)))

    def probe(frame: Frame, adapter: np.ndarray) -> Result:
        passes.append(adapter)
        return probe_of(perception)(frame, adapter)

    for _ in range(held):
        see()
    trial = Trial(strategy, Guard(taught), probe, IDENTITY, frames, 3)
    if held < 3:
        assert not trial.advance(NORMAL, 100)
        assert len(passes) == 1  # the mirror image under the adapter in use needs no candidate
        see()
        see()
    assert trial.advance(NORMAL, 100) and trial.outcomes is not None
    assert len(passes) == 7  # three frames, and the mirror images of two under either adapter
    known = [describe(frame.image) for frame, _ in frames][:2]  # then passes need not wait
    expected = read(taught)(np.mean(known, axis=0))
    assert trial.candidate == pytest.approx(expected, abs=1e-5)
