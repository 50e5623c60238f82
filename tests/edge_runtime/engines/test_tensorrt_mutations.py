"""Damaged, swapped and foreign files, at scale: refused or made again, never a wrong network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes.machine import Machine
from onnx import numpy_helper

from edge_runtime.bundle import MANIFEST, Bundle, create_bundle, open_bundle
from edge_runtime.engines.building import FILES
from edge_runtime.engines.preparing import prepare
from edge_runtime.errors import BundleError, FieldsightError

Mutate = Callable[[np.random.Generator, list[Path], list[Path]], list[Path]]
IMAGE = np.random.default_rng(5).integers(0, 256, (1, 48, 64, 3), np.uint8)
ADAPTER = np.array([1, 0.5, 1, 0, 0.2, 0.1], np.float32)


def truncate(rng: np.random.Generator, files: list[Path], foreign: list[Path]) -> list[Path]:
    file = files[rng.integers(len(files))]
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))])
    return [file]


def flip(rng: np.random.Generator, files: list[Path], foreign: list[Path]) -> list[Path]:
    file = files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    for place in rng.integers(len(content), size=rng.integers(1, 4)):
        content[place] ^= 1 << rng.integers(8)
    file.write_bytes(content)
    return [file]


def swap(rng: np.random.Generator, files: list[Path], foreign: list[Path]) -> list[Path]:
    one, other = (files[index] for index in rng.choice(len(files), 2, replace=False))
    aside = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(aside)
    return [one, other]


def replace(rng: np.random.Generator, files: list[Path], foreign: list[Path]) -> list[Path]:
    file = files[rng.integers(len(files))]
    file.write_bytes(foreign[rng.integers(len(foreign))].read_bytes())
    return [file]


def remove(rng: np.random.Generator, files: list[Path], foreign: list[Path]) -> list[Path]:
    file = files[rng.integers(len(files))]
    file.unlink()
    return [file]


MUTATIONS: tuple[Mutate, ...] = (truncate, flip, swap, replace, remove)


def scaled(network: bytes, full: float) -> bytes:
    """The tiny network with another constant, so that its statistics differ."""
    model = onnx.load_model_from_string(network)
    for tensor in model.graph.initializer:
        if tensor.name == "full":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(full), "full"))
    return model.SerializeToString()


@pytest.fixture
def bundles(tmp_path: Path, network: bytes, fields: dict[str, Any]) -> list[Bundle]:
    """Two bundles that take the same inputs; no canary, so that only the checks protect them."""
    return [
        create_bundle(
            tmp_path / f"{name}.bundle",
            fields,
            {"model.onnx": scaled(network, scale), "model.int8.onnx": scaled(network, scale + 1)},
        )
        for name, scale in (("mine", 255), ("foreign", 128))
    ]


def served(bundle: Bundle, precision: str) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether the plan was built for this, and the outputs for one image."""
    prepared = prepare(bundle, precision)
    outputs = prepared.engine.infer({"image": IMAGE, "adapter": ADAPTER})
    kept = {name: values.copy() for name, values in outputs.items()}
    prepared.engine.close()
    return prepared.built, kept


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], values) for name, values in other.items())


def restore(folder: Path, kept: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


def mutate_bundle(machine: Machine, bundles: list[Bundle], tmp_path: Path, rounds: int) -> None:
    mine, foreign = bundles
    kept = tmp_path / "kept"
    shutil.copytree(mine.path, kept)
    models = {name: mine.file(FILES[name]).read_bytes() for name in ("fp32", "int8")}
    expected = {name: served(mine, name)[1] for name in models}
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(rounds):
        restore(mine.path, kept)
        mutate = MUTATIONS[number % len(MUTATIONS)]
        touched = mutate(rng, sorted(mine.path.iterdir()), sorted(foreign.path.iterdir()))
        where = f"mutation {number}, {mutate.__name__} of {[file.name for file in touched]}"
        try:
            bundle = open_bundle(mine.path)
        except BundleError as error:
            refused += 1
            # A manifest may be wrong in a way that shows only beside the file it speaks of.
            suspects = mine.manifest.files if mine.path / MANIFEST in touched else ()
            names = [*suspects, *(file.name for file in touched)]
            assert any(name in str(error) for name in names), f"{where}: {error}"
            continue
        for precision, model in models.items():
            assert bundle.file(FILES[precision]).read_bytes() == model, where
            try:
                outputs = served(bundle, precision)[1]
            except FieldsightError as error:
                assert str(mine.path) in str(error), f"{where}: {error}"
            else:
                assert same(outputs, expected[precision]), where
    assert refused > rounds * 0.9


def mutate_cache(machine: Machine, bundles: list[Bundle], tmp_path: Path, rounds: int) -> None:
    mine, foreign = bundles
    expected = {name: served(mine, name)[1] for name in ("fp32", "int8")}
    assert not same(expected["fp32"], expected["int8"])
    assert not same(expected["fp32"], served(foreign, "fp32")[1])
    folder = machine.cache.folder
    others = [*folder.glob("*.plan"), mine.file("model.onnx")]
    own = {name: prepare(mine, name) for name in expected}
    paths = [prepared.plan for prepared in own.values()]
    for prepared in own.values():
        prepared.engine.close()
    del own, prepared
    kept = tmp_path / "kept-cache"
    shutil.copytree(folder, kept)
    foreign_files = [kept / file.name for file in others if (kept / file.name) not in paths]
    rng = np.random.default_rng(1)
    rebuilt = 0
    for number in range(rounds):
        restore(folder, kept)
        mutate = MUTATIONS[number % len(MUTATIONS)]
        files = sorted(file for file in folder.iterdir() if file.suffix in (".plan", ".timing"))
        touched = mutate(rng, files, [file for file in foreign_files if file.is_file()])
        where = f"mutation {number}, {mutate.__name__} of {[file.name for file in touched]}"
        precision = ("fp32", "int8")[number // len(MUTATIONS) % 2]
        built, outputs = served(mine, precision)
        assert same(outputs, expected[precision]), where
        plan = paths[precision == "int8"]
        changed = not plan.is_file() or plan.read_bytes() != (kept / plan.name).read_bytes()
        assert built or not changed, f"{where}: an altered plan was used"
        if number % 10 == 0:
            assert not served(mine, precision)[0], "what was built again is kept"
        rebuilt += built
    assert rebuilt > rounds * 0.1


def test_a_bundle_with_a_wrong_file_is_refused(
    machine: Machine, bundles: list[Bundle], tmp_path: Path
) -> None:
    mutate_bundle(machine, bundles, tmp_path, 600)


def test_a_cache_with_a_wrong_file_never_serves_it(
    machine: Machine, bundles: list[Bundle], tmp_path: Path
) -> None:
    mutate_cache(machine, bundles, tmp_path, 400)
