"""What the tests on a real GPU share.

They run the bundle that FIELDSIGHT_BUNDLE names, else a tiny one. Plans are built into a folder of
their own, so the first test of a precision takes as long as building does.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edge_runtime.bundle import Bundle, create_bundle, open_bundle
from edge_runtime.engines.building import FILES
from edge_runtime.engines.preparing import Prepared, prepare
from edge_runtime.engines.tensorrt import TensorRTEngine, why_unavailable

Feed = Callable[[int], dict[str, np.ndarray]]


def _tiny() -> ModuleType:
    """The fixtures of the runtime's tests, which make the tiny bundle."""
    pytest.importorskip("onnx", reason="onnx makes the tiny bundle; or set FIELDSIGHT_BUNDLE")
    path = Path(__file__).resolve().parent.parent / "edge_runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_bundle_maker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skips everything here, with the reason, where TensorRT or a GPU is missing."""
    if reason := why_unavailable():
        pytest.skip(f"needs an NVIDIA GPU with TensorRT: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIELDSIGHT_CACHE", str(tmp_path_factory.mktemp("plans")))
        yield


@pytest.fixture(scope="session")
def bundle(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle under test."""
    if path := os.environ.get("FIELDSIGHT_BUNDLE"):
        return open_bundle(path)
    tiny = _tiny()
    network = tiny.tiny_network()
    files: dict[str, bytes | Path] = {
        "model.onnx": network,
        "canary.npz": tiny.tiny_canary(network),
    }
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    return create_bundle(path, tiny.tiny_fields(), files)


@pytest.fixture(scope="session", params=list(FILES))
def prepared(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Prepared]:
    """The bundle's engine in one precision, built once; self-tested on its canary."""
    if not bundle.has(FILES[request.param]):
        pytest.skip(f"{bundle.path.name} has no {FILES[request.param]}")
    prepared = prepare(bundle, request.param)
    yield prepared
    prepared.engine.close()


@pytest.fixture
def engine(prepared: Prepared) -> TensorRTEngine:
    return prepared.engine


@pytest.fixture(scope="session")
def feed(bundle: Bundle) -> Feed:
    """Images by number: the canary's where there are some, else smoothed noise; and an adapter."""
    from edge_runtime.bundle import identity_adapter

    spec = bundle.manifest.input
    images: list[np.ndarray] = []
    if bundle.has("canary.npz"):
        with np.load(bundle.file("canary.npz"), allow_pickle=False) as canary:
            images = list(canary["images"])

    def make(number: int) -> dict[str, np.ndarray]:
        if number < len(images):
            image = images[number]
        else:
            rng = np.random.default_rng(number)
            coarse = rng.integers(0, 256, (spec.height // 8, spec.width // 8, 3), np.uint8)
            image = np.resize(coarse.repeat(8, 0).repeat(8, 1), (spec.height, spec.width, 3))
        return {
            "image": np.ascontiguousarray(image[None]),
            "adapter": identity_adapter(bundle.manifest),
        }

    return make
