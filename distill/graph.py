"""The student as an ONNX graph, and the check that both compute the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from timm.utils import reparameterize_model

from edge_runtime.errors import InputError, RefusedError
from edge_runtime.student import DeployedNetwork, Student

OPSET = 18


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


def open_session(path: Path) -> ort.InferenceSession:
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
            worst = max(worst, box_difference(expected, found))
    result = {"mask_equal": float(np.mean(equal)) if equal else 1.0, "box_px": worst}
    if result["mask_equal"] < 0.999 or result["box_px"] > 0.1:
        raise RefusedError(f"torch and ONNX Runtime disagree: {result}; the export is not written")
    return result


def box_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest distance from a confident box of one to the nearest of its class in the other."""
    keep = a["scores"] > 0.05
    worst = 0.0
    for box, label in zip(a["boxes"][keep], a["labels"][keep], strict=True):
        same = b["boxes"][b["labels"] == label]
        near = np.abs(same - box).max(axis=1).min() if len(same) else np.inf
        worst = max(worst, float(near))
    return worst
