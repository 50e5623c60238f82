"""What a bundle does on network-sized frames, run by the engine as on the robot."""

from __future__ import annotations

import numpy as np

from edge_runtime.adaptation.consolidation.acceptance import Measured, Run, known_in_looks, measure
from edge_runtime.adaptation.consolidation.material import Material
from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.source import pooled
from edge_runtime.adaptation.strategies import create_strategy
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.engines import Engine, open_engine
from edge_runtime.frames import Frame, Result

_ALIGNING_PASSES = 2  # over the memory: the first finds the place's statistics


def align(bundle: Bundle, frames: np.ndarray, threads: int | None = None) -> np.ndarray:
    """The adapter [A] that alignment settles on over frames uint8 [N, H, W, 3] of a place."""
    strategy, shifted = create_strategy("align", bundle), Drift(1.0, "shifted", 1)
    adapter = identity_adapter(bundle.manifest)
    engine = open_engine(bundle, "onnxruntime", "fp32", threads)
    for image in (image for _ in range(_ALIGNING_PASSES) for image in frames):
        statistics = engine.infer({"image": image[None], "adapter": adapter})["statistics"]
        result = Result(0, "", None, None, np.array(statistics))
        found = strategy.observe(Frame(image, 0, ""), result, shifted)
        adapter = adapter if found is None else found
    engine.close()
    return adapter


def measured(bundle: Bundle, material: Material, adapter: np.ndarray) -> Measured:
    engine = open_engine(bundle, "onnxruntime", "fp32")
    measured = measure(_runner(engine, bundle), material.kept_out, adapter)
    engine.close()
    return measured


def helps(bundle: Bundle, material: Material, adapter: np.ndarray) -> bool:
    """Whether labelled frames in the looks of the place are known better under an adapter."""
    engine = open_engine(bundle, "onnxruntime", "fp32")
    run = _runner(engine, bundle)
    plain, adapted = (known_in_looks(run, material.kept_out, given) for given in (None, adapter))
    engine.close()
    return plain is not None and adapted is not None and adapted > plain


def signature(bundle: Bundle, frames: np.ndarray) -> np.ndarray:
    """By which a place is told, float32 [2 C0]; see `PlaceMemory`. Frames uint8 [N, H, W, 3]."""
    engine, reference = open_engine(bundle, "onnxruntime", "fp32"), Reference.of(bundle)
    run, first = _runner(engine, bundle), reference.first
    taken = np.stack([np.array(run(image[None], None)["statistics"]) for image in frames])
    engine.close()
    mean, var = reference.split(taken)
    return np.concatenate(pooled(mean[:, first], var[:, first])).astype(np.float32)


def _runner(engine: Engine, bundle: Bundle) -> Run:
    identity = identity_adapter(bundle.manifest)
    return lambda image, adapter: engine.infer(
        {"image": image, "adapter": identity if adapter is None else adapter}
    )
