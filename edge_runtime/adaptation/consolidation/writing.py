"""The files of a consolidated bundle: graph, weights, reference and canary that belong together."""

from __future__ import annotations

import io
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from edge_runtime.adaptation.consolidation.material import REHEARSAL
from edge_runtime.adaptation.consolidation.refold import refold
from edge_runtime.adaptation.predictor import FILE
from edge_runtime.adaptation.reference import FRAMES_KEY, Reference
from edge_runtime.bundle import Bundle, create_bundle, identity_adapter
from edge_runtime.engines import open_engine
from edge_runtime.errors import RefusedError
from edge_runtime.selftest import load_canary
from edge_runtime.student import DeployedNetwork, Student

_LEAST_EQUAL = 0.999  # share of mask pixels on which torch and the written graph must agree
_MOST_OFF = 0.5  # pixels between their best boxes
_LEAST_VARIANCE = 1e-8
_EXPECTED = "expected_"  # before an output's name in the canary: what the network says of it


def draft(bundle: Bundle, old: Student, new: Student, out: Path, note: dict[str, Any]) -> Bundle:
    """Write a bundle of `new`, not yet accepted.

    Files that were calibrated for the old weights (FP16, INT8) are left out.

    Args:
        bundle: The bundle of `old`.
        old: The student it holds.
        new: The student with tuned weights.
        out: Folder to write, ending in ".bundle".
        note: What is to be known of the consolidation; added to the provenance.

    Raises:
        RefusedError: The graph cannot be given new weights, or does not compute what torch does.
    """
    spec = bundle.manifest.input
    size = spec.height, spec.width
    model = refold(bundle.file("model.onnx").read_bytes(), old, new, size)
    canary = load_canary(bundle)
    images = canary["images"]
    before = _run_all(bundle, images)
    state = {name: value.contiguous() for name, value in new.state_dict().items()}
    files: dict[str, bytes | Path] = {
        "model.onnx": model,
        "student.safetensors": save_tensors(state),
    }
    with tempfile.TemporaryDirectory() as scratch:
        # The engine that answers for the new graph needs a bundle to open.
        rough = create_bundle(Path(scratch) / out.name, _fields(bundle, out, note), files)
        after = _run_all(rough, images)
    _check_parity(new, images, after)
    for name in canary:  # labels stay: `boxes` of the canary are those that people drew
        if name.startswith(_EXPECTED) and (output := name.removeprefix(_EXPECTED)) in after:
            canary[name] = after[output]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **canary)  # type: ignore[arg-type]
    files["canary.npz"] = buffer.getvalue()
    if bundle.has(REHEARSAL):
        files[REHEARSAL] = bundle.file(REHEARSAL)
    if bundle.has(FILE):  # the weights are near the old ones, and the guard judges what it says
        files[FILE] = bundle.file(FILE)
    if bundle.has("reference.safetensors"):
        files["reference.safetensors"] = _reference(bundle, before, after)
    return create_bundle(out, _fields(bundle, out, note), files)


def _fields(bundle: Bundle, out: Path, note: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the new bundle; figures that were measured on the old weights say so."""
    manifest = bundle.manifest
    fields = manifest.model_dump(exclude={"files", "schema_version"})
    recipe = dict(fields["provenance"]["recipe"])
    recipe["consolidations"] = [*recipe.get("consolidations", []), note]
    fields["provenance"]["recipe"] = recipe
    fields["name"] = out.name.removesuffix(".bundle")
    fields["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    fields["metrics"] = {"before_consolidation": fields["metrics"]}
    return fields


def _run_all(bundle: Bundle, images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs for network-sized images as trained, with leading N."""
    engine = open_engine(bundle, "onnxruntime", "fp32")
    adapter = identity_adapter(bundle.manifest)
    rows = []
    for image in images:
        outputs = engine.infer({"image": image[None], "adapter": adapter})
        rows.append({name: np.array(values) for name, values in outputs.items()})
    engine.close()
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _check_parity(student: Student, images: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """Refuse a graph that does not compute what the tuned student computes."""
    top_k = found["scores"].shape[1] if "scores" in found else 1
    network = DeployedNetwork(student, top_k, "mask_confidence" in found).eval()
    with torch.no_grad():
        for index, image in enumerate(images):
            told = network(torch.from_numpy(image)[None], _ones(student))
            expected = dict(zip(network.output_names, (o.numpy() for o in told), strict=True))
            equal = (
                float((expected["mask"] == found["mask"][index]).mean()) if "mask" in found else 1
            )
            off = 0.0
            if "boxes" in found:
                best = expected["scores"] > 0.3
                distance = np.abs(expected["boxes"][best] - found["boxes"][index][best])
                off = float(distance.max(initial=0))
            if equal < _LEAST_EQUAL or off > _MOST_OFF:
                raise RefusedError(
                    f"the new graph agrees with the tuned student on {equal:.2%} of the pixels and "
                    f"its boxes are off by {off:.2f} px; it is not written"
                )


def _ones(student: Student) -> torch.Tensor:
    points = student.spec.adapter
    return torch.cat([torch.tensor([1.0, 0.0]).repeat_interleave(p.channels) for p in points])


def _reference(
    bundle: Bundle, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> bytes:
    """The training domain's statistics as the new weights would have them.

    The domain itself is not here, but its canary is: means move by as much, variances by the same
    factor, as on the canary's frames.
    """
    reference = Reference.of(bundle)
    arrays = load_file(bundle.file("reference.safetensors"))
    (mean_a, var_a), (mean_b, var_b) = (
        reference.split(outputs["statistics"]) for outputs in (before, after)
    )
    moved = (mean_b - mean_a).mean(0)
    pooled = [v.mean(0) + m.var(0) for m, v in ((mean_a, var_a), (mean_b, var_b))]
    factor = (pooled[1] + _LEAST_VARIANCE) / (pooled[0] + _LEAST_VARIANCE)
    for name, part in reference.slices.items():
        arrays[f"{name}.mean"] = (reference.mean[part] + moved[part]).astype(np.float32)
        arrays[f"{name}.var"] = (reference.var[part] * factor[part]).astype(np.float32)
    if FRAMES_KEY in arrays:
        frames = arrays[FRAMES_KEY].copy()
        for row in frames:
            mean, var = reference.split(row)
            row[:] = reference.join(mean + moved, var * factor)
        arrays[FRAMES_KEY] = frames
    return save_arrays(arrays)
