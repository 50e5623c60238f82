"""``export``: a fine-tuned run into the bundle that robots run."""

from __future__ import annotations

import copy
import datetime
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from safetensors.numpy import save as save_arrays
from timm.utils import reparameterize_model

from distill.data.views import resize_image
from distill.runs import git_commit, load_student, versions
from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError, RefusedError
from edge_runtime.student import DeployedNetwork, Student

OPSET = 18
_CANARY_FRAMES = 16


def write_onnx(
    student: Student,
    size: tuple[int, int],
    path: Path,
    top_k: int = 100,
    mask_confidence: bool = False,
    adaptive: bool = True,
) -> DeployedNetwork:
    """Writes the network contract's graph for an input of (H, W) and returns its torch twin."""
    if size[0] % 32 or size[1] % 32:
        raise InputError(f"network size {size[0]}x{size[1]} must be a multiple of 32 both ways")
    ready = copy.deepcopy(student).cpu().eval()
    ready.trunk.body = reparameterize_model(ready.trunk.body, inplace=True)
    network = DeployedNetwork(ready, top_k, mask_confidence, adaptive).eval()
    image = torch.zeros(1, *size, 3, dtype=torch.uint8)
    names = ["image"]
    example: tuple[torch.Tensor, ...] = (image,)
    if adaptive:
        names.append("adapter")
        example += (identity(student),)
    with torch.no_grad():
        torch.onnx.export(
            network,
            example,
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=network.output_names,
            external_data=False,
            verbose=False,
        )
    return network


def identity(student: Student) -> torch.Tensor:
    """The adapter that changes nothing, float32 [A]."""
    parts = [
        torch.cat([torch.ones(p.channels), torch.zeros(p.channels)]) for p in student.spec.adapter
    ]
    return torch.cat(parts)


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def check_parity(
    network: DeployedNetwork, session: ort.InferenceSession, images: list[np.ndarray]
) -> dict[str, float]:
    """Compares torch with ONNX Runtime on network-sized uint8 frames.

    Returns:
        ``mask_equal`` (share of pixels) and ``box_px`` (largest coordinate difference among the
        boxes scored above 0.05 whose order agrees).

    Raises:
        RefusedError: less than 99.9% of the pixels equal or a box off by over 0.1 px.
    """
    adapter = identity(network.student)
    equal, worst = [], 0.0
    for image in images:
        with torch.no_grad():
            torch_out = network(torch.from_numpy(image)[None], adapter)
        expected = dict(zip(network.output_names, (o.numpy() for o in torch_out), strict=True))
        found = dict(
            zip(
                network.output_names,
                session.run(
                    network.output_names, {"image": image[None], "adapter": adapter.numpy()}
                ),
                strict=True,
            )
        )
        if "mask" in expected:
            equal.append(float((expected["mask"] == found["mask"]).mean()))
        if "boxes" in expected:
            worst = max(worst, _box_difference(expected, found))
    result = {"mask_equal": float(np.mean(equal)) if equal else 1.0, "box_px": worst}
    if result["mask_equal"] < 0.999 or result["box_px"] > 0.1:
        raise RefusedError(f"torch and ONNX Runtime disagree: {result}; the export is not written")
    return result


def _box_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest distance from a confident box of one to the nearest of its class in the other."""
    keep = a["scores"] > 0.05
    worst = 0.0
    for box, label in zip(a["boxes"][keep], a["labels"][keep], strict=True):
        same = b["boxes"][b["labels"] == label]
        near = np.abs(same - box).max(axis=1).min() if len(same) else np.inf
        worst = max(worst, float(near))
    return worst


def _canary(
    session: ort.InferenceSession,
    names: list[str],
    images: list[np.ndarray],
    adapter: np.ndarray,
) -> bytes:
    runs = [session.run(names, {"image": i[None], "adapter": adapter}) for i in images]
    arrays = {f"expected_{n}": np.stack([r[k] for r in runs]) for k, n in enumerate(names)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.stack(images), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _reference(
    session: ort.InferenceSession,
    student: Student,
    images: list[np.ndarray],
    adapter: np.ndarray,
    counts: dict[str, np.ndarray],
) -> bytes:
    """Training-domain statistics per adapter point: the mixture over frames."""
    runs = [session.run(["statistics"], {"image": i[None], "adapter": adapter})[0] for i in images]
    stack, arrays, at = np.stack(runs), {}, 0
    for point in student.spec.adapter:
        c = point.channels
        means, variances = stack[:, at : at + c], stack[:, at + c : at + 2 * c]
        arrays[f"{point.name}.mean"] = means.mean(0)
        arrays[f"{point.name}.var"] = variances.mean(0) + means.var(0)
        at += 2 * c
    return save_arrays({**arrays, **counts})


def _histograms(student: Student, dataset: Dataset, indices: np.ndarray) -> dict[str, np.ndarray]:
    counts: dict[str, np.ndarray] = {}
    frames = [dataset.read(int(i)) for i in indices]
    if "segmentation" in student.heads:
        masks = [f.mask.ravel() for f in frames if f.mask is not None]
        size = len(dataset.segmentation_classes or [])
        joined = np.concatenate(masks) if masks else np.zeros(0, np.uint8)
        counts["segmentation.histogram"] = np.bincount(joined, minlength=256)[:size].astype("f4")
    if "detection" in student.heads:
        size = len(dataset.detection_classes or [])
        labels = np.concatenate([f.labels for f in frames]).astype(int)
        counts["detection.histogram"] = np.bincount(labels, minlength=size).astype("f4")
    return counts


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Distinct colours by walking the hue circle in golden-ratio steps."""
    import colorsys

    found = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb((i * 0.618034) % 1, 0.55 + 0.4 * (i % 2), 0.95)
        found.append((int(rgb[0] * 255), int(rgb[1] * 255), int(rgb[2] * 255)))
    return found


def export(
    run: Path,
    dataset: Dataset,
    out: Path,
    size: tuple[int, int] | None = None,
    top_k: int = 100,
    mask_confidence: bool = False,
    overwrite: bool = False,
) -> tuple[Bundle, dict[str, float]]:
    """Writes the bundle of a fine-tuned run.

    Args:
        dataset: source-domain frames for reference statistics and canary.
        size: network input (H, W); default the run's last training size.

    Returns:
        The bundle and the parity figures of ``check_parity``.
    """
    student, config = load_student(run)
    if not student.heads:
        raise InputError(f"{run} has no heads: run fieldsight-distill finetune first")
    settings = config["settings"]
    chosen = size or tuple(settings["final_size"] or settings["size"])
    chosen = (round(chosen[0] / 32) * 32, round(chosen[1] / 32) * 32)
    count = len(dataset.samples)
    indices = np.unique(np.linspace(0, count - 1, min(count, 64)).astype(int))
    images = [resize_image(dataset.read(int(i)).image, chosen) for i in indices]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        network = write_onnx(student, chosen, path, top_k, mask_confidence)
        session = _session(path)
        parity = check_parity(network, session, images[:_CANARY_FRAMES])
        adapter = identity(student).numpy()
        names = network.output_names
        files: dict[str, bytes | Path] = {
            "model.onnx": path.read_bytes(),
            "student.safetensors": run / "student.safetensors",
            "reference.safetensors": _reference(
                session, student, images, adapter, _histograms(student, dataset, indices)
            ),
            "canary.npz": _canary(session, names, images[:_CANARY_FRAMES], adapter),
        }
    fields = _manifest(run, out, student, config, dataset, session, chosen, parity)
    return create_bundle(out, fields, files, overwrite=overwrite), parity


_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int32)": "int32"}


def _manifest(
    run: Path,
    out: Path,
    student: Student,
    config: dict[str, Any],
    dataset: Dataset,
    session: ort.InferenceSession,
    size: tuple[int, int],
    parity: dict[str, float],
) -> dict[str, Any]:
    def specs(nodes: list[Any]) -> list[dict[str, Any]]:
        return [{"name": n.name, "dtype": _DTYPES[n.type], "shape": list(n.shape)} for n in nodes]

    classes = {
        task: [
            {"name": n, "color": c} for n, c in zip(names, class_colours(len(names)), strict=True)
        ]
        for task, names in config["classes"].items()
    }
    return {
        "name": out.name.removesuffix(".bundle"),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "tasks": list(config["classes"]),
        "input": {"height": size[0], "width": size[1]},
        "inputs": specs(session.get_inputs()),
        "outputs": specs(session.get_outputs()),
        "classes": classes,
        "ignore_index": config.get("ignore_index"),
        "student": student.spec.model_dump(),
        "provenance": {
            "teachers": config.get("teachers", []),
            "data_digest": dataset.digest(),
            "recipe": config["settings"],
            "versions": versions(),
            "git_commit": git_commit(),
        },
        "metrics": {"parity": parity},
    }
