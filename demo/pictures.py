"""Pictures for the demo's report: features as colours, overlays, all as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file

from distill.teachers import Teacher, TeacherSpec
from edge_runtime.bundle import Bundle
from edge_runtime.student import Student

WIDTH = 320


def data_uri(image: np.ndarray, quality: int = 88) -> str:
    """A uint8 RGB image [H, W, 3] as a JPEG data URI, `WIDTH` pixels wide."""
    height = round(image.shape[0] * WIDTH / image.shape[1])
    small = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert ok
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def pca_colours(features: list[np.ndarray]) -> list[np.ndarray]:
    """Dense features as colours: the first three principal components over all images as RGB.

    The components are fitted without the outermost cells, which padding sets apart.

    Args:
        features: per image float [C, h, w].

    Returns:
        Per image uint8 [h, w, 3].
    """
    inner = [f[:, 1:-1, 1:-1] for f in features]
    tokens = np.concatenate([f.reshape(len(f), -1).T for f in inner]).astype(np.float64)
    mean = tokens.mean(0)
    _, _, directions = np.linalg.svd(tokens - mean, full_matrices=False)
    axes = directions[:3].T
    projected = (tokens - mean) @ axes
    low, high = np.percentile(projected, [2, 98], axis=0)
    colours = []
    for f in features:
        flat = (f.reshape(len(f), -1).T - mean) @ axes
        scaled = np.clip((flat - low) / np.maximum(high - low, 1e-9), 0, 1) * 255
        colours.append(scaled.reshape(*f.shape[1:], 3).astype(np.uint8))
    return colours


def upscale(colours: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Brings a small map of colours to an image's size without smoothing."""
    return cv2.resize(colours, like.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def teacher_features(spec: str, images: list[np.ndarray]) -> list[np.ndarray]:
    """Dense teacher features [C, h, w] of uint8 RGB images."""
    teacher = Teacher(TeacherSpec.parse(spec))

    def dense(image: torch.Tensor) -> torch.Tensor:
        return teacher(image)[0]

    return _per_image(dense, images)


def student_features(bundle: Bundle, weights: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    """The student's neck map at stride 8, [C, h, w], with the weights of a run.

    Heads in the file are left out: after distillation there are none that matter.
    """
    spec = bundle.manifest.student
    student = Student(
        spec.trunk,
        neck_width=spec.neck_width,
        head_width=spec.head_width,
        head_depth=spec.head_depth,
    )
    state = load_file(weights)
    student.load_state_dict({k: v for k, v in state.items() if not k.startswith("heads.")})
    student.eval()

    def dense(image: torch.Tensor) -> torch.Tensor:
        return student.pyramid(image)[1][1]

    return _per_image(dense, images)


def _per_image(
    dense: Callable[[torch.Tensor], torch.Tensor], images: list[np.ndarray]
) -> list[np.ndarray]:
    with torch.inference_mode():
        return [dense(torch.from_numpy(image)[None])[0].float().numpy() for image in images]


def to_multiple(image: np.ndarray, multiple: int = 32) -> np.ndarray:
    """Resizes so that both sides are multiples of 32, about 320 pixels wide."""
    height = round(image.shape[0] * WIDTH / image.shape[1] / multiple) * multiple
    return cv2.resize(image, (WIDTH, max(height, multiple)), interpolation=cv2.INTER_AREA)
