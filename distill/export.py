"""``export``: a fine-tuned run into the bundle that robots run."""

from __future__ import annotations

import colorsys
import datetime
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from safetensors.numpy import save as save_arrays

from distill.data.labelled import crop_boxes
from distill.data.views import resize_image
from distill.graph import check_parity, identity, open_session, write_onnx
from distill.runs import git_commit, load_student, versions
from distill.tasks.segmentation import IGNORED
from distill.teachers import licences
from edge_runtime.adaptation.reference import FRAMES_KEY
from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.evaluation import evaluate
from edge_runtime.perception import Perception
from edge_runtime.student import Student

_CANARY_FRAMES = 16
_REFERENCE_FRAMES = 64
_CANARY_BOXES = 64
_RUNS, _RUN_FRAMES = 8, 32  # of consecutive frames, to learn how far a source sequence strays


def _canary(
    session: ort.InferenceSession,
    names: list[str],
    images: list[np.ndarray],
    adapter: np.ndarray,
    labels: dict[str, np.ndarray],
) -> bytes:
    runs = [session.run(names, {"image": i[None], "adapter": adapter}) for i in images]
    arrays = {f"expected_{n}": np.stack([r[k] for r in runs]) for k, n in enumerate(names)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.stack(images), **arrays, **labels)  # type: ignore[arg-type]
    return buffer.getvalue()


def canary_labels(
    dataset: Dataset, indices: np.ndarray, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Labels at network size, as the canary has them: ``masks`` uint8 [N, H, W] with 255 unlabelled
    and ``boxes`` float32 [N, M, 5] of label, x1, y1, x2, y2, padded with -1."""
    masks, boxes = [], []
    for i in indices:
        frame = dataset.read(int(i))
        height, width = frame.image.shape[:2]
        mask = np.full(size, IGNORED, np.uint8)
        if frame.mask is not None:
            rows = (np.arange(size[0]) + 0.5) * height / size[0]
            columns = (np.arange(size[1]) + 0.5) * width / size[1]
            mask = frame.mask[np.ix_(rows.astype(int), columns.astype(int))]
            if dataset.ignore_index is not None:
                mask[mask == dataset.ignore_index] = IGNORED
        masks.append(mask)
        moved, labels = crop_boxes(frame.boxes, frame.labels, (0, 0, width, height), size)
        row = np.full((_CANARY_BOXES, 5), -1, np.float32)
        count = min(len(moved), _CANARY_BOXES)
        row[:count, 0], row[:count, 1:] = labels[:count], moved[:count]
        boxes.append(row)
    return {"masks": np.stack(masks), "boxes": np.stack(boxes)}


def _rehearsed(
    dataset: Dataset, shown: np.ndarray, size: tuple[int, int], count: int
) -> bytes | None:
    """Labelled frames spread over the data, none of them among those `shown` in the canary."""
    others = np.setdiff1d(np.arange(len(dataset.samples)), shown)
    if not count or not len(others):
        return None
    chosen = others[np.unique(np.linspace(0, len(others) - 1, count).astype(int))]
    labels = canary_labels(dataset, chosen, size)
    if (labels["masks"] == IGNORED).all() and (labels["boxes"] < 0).all():
        return None
    images = np.stack([resize_image(dataset.read(int(i)).image, size) for i in chosen])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, **labels)  # type: ignore[arg-type]
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


def _in_order(
    session: ort.InferenceSession, dataset: Dataset, size: tuple[int, int], adapter: np.ndarray
) -> np.ndarray:
    """Statistics [N, A] of source frames in the order they were recorded: of all of them, or of
    runs of consecutive ones spread evenly."""
    count = len(dataset.samples)
    chosen = list(range(count))
    if count > _RUNS * _RUN_FRAMES:
        starts = np.linspace(0, count - _RUN_FRAMES, _RUNS).astype(int)
        chosen = [int(s) + k for s in starts for k in range(_RUN_FRAMES)]
    rows = []
    for i in chosen:
        image = resize_image(dataset.read(i).image, size)
        rows.append(session.run(["statistics"], {"image": image[None], "adapter": adapter})[0])
    return np.stack(rows)


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
    judge: Dataset | None = None,
    rehearsal: int = 0,
) -> tuple[Bundle, dict[str, Any]]:
    """Writes the bundle of a fine-tuned run.

    Args:
        dataset: source-domain frames for reference statistics and canary.
        size: network input (H, W); default the run's last training size.
        judge: labelled data whose figures go into the manifest's metrics.
        rehearsal: how many labelled frames to add for consolidation to learn from.

    Returns:
        The bundle and its metrics: ``parity`` of ``check_parity`` and, per task, the figures.
    """
    student, config = load_student(run)
    if not student.heads:
        raise InputError(f"{run} has no heads: run fieldsight-distill finetune first")
    settings = config["settings"]
    chosen = size or tuple(settings["final_size"] or settings["size"])
    count = len(dataset.samples)
    indices = np.unique(np.linspace(0, count - 1, min(count, _REFERENCE_FRAMES)).astype(int))
    shown = indices[np.unique(np.linspace(0, len(indices) - 1, _CANARY_FRAMES).astype(int))]
    images = [resize_image(dataset.read(int(i)).image, chosen) for i in indices]
    canary = [resize_image(dataset.read(int(i)).image, chosen) for i in shown]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        network = write_onnx(student, chosen, path, top_k, mask_confidence)
        session = open_session(path)
        metrics: dict[str, Any] = {"parity": check_parity(network, session, canary)}
        adapter = identity(student).numpy()
        files: dict[str, bytes | Path] = {
            "model.onnx": path.read_bytes(),
            "student.safetensors": run / "student.safetensors",
            "reference.safetensors": _reference(
                session,
                student,
                images,
                adapter,
                _histograms(student, dataset, indices)
                | {FRAMES_KEY: _in_order(session, dataset, chosen, adapter)},
            ),
            "canary.npz": _canary(
                session,
                network.output_names,
                canary,
                adapter,
                canary_labels(dataset, shown, chosen),
            ),
        }
        if others := _rehearsed(dataset, shown, chosen, rehearsal):
            files["rehearsal.npz"] = others
        fields = _manifest(out, student, config, dataset, session, chosen)
        if judge is not None:
            draft = create_bundle(Path(scratch) / out.name, {**fields, "metrics": {}}, files)
            metrics |= evaluate(Perception(draft), judge)
            metrics["data"] = {"name": judge.name, "split": judge.split, "digest": judge.digest()}
    return create_bundle(out, {**fields, "metrics": metrics}, files, overwrite=overwrite), metrics


_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int32)": "int32"}


def _manifest(
    out: Path,
    student: Student,
    config: dict[str, Any],
    dataset: Dataset,
    session: ort.InferenceSession,
    size: tuple[int, int],
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
            "teacher_licence": licences(config.get("teachers", [])),
            "data_digest": dataset.digest(),
            "recipe": config["settings"],
            "versions": versions(),
            "git_commit": git_commit(),
        },
    }
