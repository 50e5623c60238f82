"""A world whose classes are colours, and a network of two adapter points that tells them apart.

The label of a pixel is its strongest channel, so coloured light alone ruins the network, and a
right adapter mends it: small enough for tests, true enough to be judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from edge_runtime.adaptation.reference import FRAMES_KEY
from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.frames import Frame

HEIGHT, WIDTH, FRAMES = 48, 64, 40
IDENTITY = np.array([1, 1, 1, 0, 0, 0] * 2, np.float32)
COLOURS = ([255, 0, 0], [0, 255, 0], [0, 0, 255])
NAMES = ("red", "green", "blue")


@dataclass(frozen=True)
class World:
    """A bundle, a labelled dataset on disk and its frames."""

    bundle: Bundle
    yaml: Path
    frames: list[Frame]
    masks: list[np.ndarray]


def scene(seed: int) -> np.ndarray:
    """Soft blobs of colour with some texture, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (6, 8, 3)).astype(np.float32)
    blobs = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    image = 110 + 45 * blobs + rng.normal(0, 4, blobs.shape)
    return np.clip(image, 1, 254).astype(np.uint8)


def network() -> bytes:
    """Two points, each reporting what enters it; the mask is the strongest channel after both."""
    constants: dict[str, Any] = {
        "full": np.float32(255),
        "space": np.array([1, 2], np.int64),
        "start": np.array([0, 0], np.int64),
        "end": np.array([HEIGHT, WIDTH], np.int64),
        "step": np.array([2, 2], np.int64),
        "flat": np.array([-1], np.int64),
        "zero": np.array([0], np.int64),
        **{f"at{i}": np.array([3 * i], np.int64) for i in range(5)},
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Div", ["float", "full"], ["x0"]),
    ]
    for point in range(2):
        x, n = f"x{point}", str(point)
        nodes += [
            node("ReduceMean", [x, "space"], [f"mean{n}"]),
            node("Sub", [x, f"mean{n}"], [f"centred{n}"]),
            node("Mul", [f"centred{n}", f"centred{n}"], [f"squared{n}"]),
            node("ReduceMean", [f"squared{n}", "space"], [f"var{n}"]),
            node("Slice", ["adapter", f"at{2 * point}", f"at{2 * point + 1}"], [f"scale{n}"]),
            node("Slice", ["adapter", f"at{2 * point + 1}", f"at{2 * point + 2}"], [f"shift{n}"]),
            node("Mul", [x, f"scale{n}"], [f"scaled{n}"]),
            node("Add", [f"scaled{n}", f"shift{n}"], [f"x{point + 1}"]),
        ]
    nodes += [
        node("Concat", ["mean0", "var0", "mean1", "var1"], ["all"], axis=3),
        node("Reshape", ["all", "flat"], ["statistics"]),
        node("Slice", ["x2", "start", "end", "space", "step"], ["coarse"]),
        node("ArgMax", ["coarse"], ["best"], axis=3, keepdims=0),
        node("Squeeze", ["best", "zero"], ["plane"]),
        node("Cast", ["plane"], ["mask"], to=TensorProto.UINT8),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "colours",
        [
            value("image", TensorProto.UINT8, [1, HEIGHT, WIDTH, 3]),
            value("adapter", TensorProto.FLOAT, [12]),
        ],
        [
            value("mask", TensorProto.UINT8, [HEIGHT // 2, WIDTH // 2]),
            value("statistics", TensorProto.FLOAT, [12]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def _fields() -> dict[str, Any]:
    return {
        "tasks": ["segmentation"],
        "input": {"height": HEIGHT, "width": WIDTH},
        "inputs": [
            {"name": "image", "dtype": "uint8", "shape": [1, HEIGHT, WIDTH, 3]},
            {"name": "adapter", "dtype": "float32", "shape": [12]},
        ],
        "outputs": [
            {"name": "mask", "dtype": "uint8", "shape": [HEIGHT // 2, WIDTH // 2]},
            {"name": "statistics", "dtype": "float32", "shape": [12]},
        ],
        "classes": {
            "segmentation": [{"name": n, "color": c} for n, c in zip(NAMES, COLOURS, strict=True)]
        },
        "student": {
            "trunk": "none",
            "neck_width": 1,
            "head_width": 1,
            "head_depth": 1,
            "adapter": [{"name": "stem", "channels": 3}, {"name": "late", "channels": 3}],
        },
    }


def make_bundle(path: Path) -> Bundle:
    """The bundle, with statistics of frames 100 to 163 as its source."""
    import io

    model = network()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = np.stack([scene(seed) for seed in range(100, 164)])
    runs = [session.run(None, {"image": i[None], "adapter": IDENTITY}) for i in images]
    statistics = np.stack([run[1] for run in runs])
    arrays: dict[str, np.ndarray] = {FRAMES_KEY: statistics}
    for name, at in (("stem", 0), ("late", 6)):
        mean, var = statistics[:, at : at + 3], statistics[:, at + 3 : at + 6]
        arrays[f"{name}.mean"], arrays[f"{name}.var"] = mean.mean(0), var.mean(0) + mean.var(0)
    masks = np.stack([run[0] for run in runs])
    arrays["segmentation.histogram"] = np.bincount(masks.ravel(), minlength=3).astype(np.float32)
    buffer = io.BytesIO()
    expected = {"expected_mask": masks[:8], "expected_statistics": statistics[:8]}
    np.savez(buffer, images=images[:8], **expected)
    files: dict[str, bytes | Path] = {
        "model.onnx": model,
        "canary.npz": buffer.getvalue(),
        "reference.safetensors": save(arrays),
    }
    return create_bundle(path, _fields(), files)


def make_world(folder: Path) -> World:
    """Bundle and dataset in a folder."""
    bundle = make_bundle(folder / "colours.bundle")
    frames, masks = [], []
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index in range(FRAMES):
        image = scene(index)
        frames.append(Frame(image, index, f"{index:03d}"))
        masks.append(image.argmax(2).astype(np.uint8))
        cv2.imwrite(str(folder / "images" / f"{index:03d}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / "masks" / f"{index:03d}.png"), masks[-1])
    yaml = folder / "dataset.yaml"
    yaml.write_text(
        "name: colours\nsplits:\n  all: {images: images, masks: masks}\n"
        "segmentation: {classes: [red, green, blue]}\n"
    )
    return World(bundle, yaml, frames, masks)
