"""Confidence after quantisation: one temperature a head, baked into the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from calibration.network import expose, open_session
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.datasets import Dataset, LabelledFrame
from edge_runtime.decode import decode_detections
from edge_runtime.geometry import Geometry

_BINS = 15
_TEMPERATURES = np.exp(np.linspace(np.log(0.5), np.log(2), 139))
_TINY = 1e-6
_PIXELS = 5_000  # of one frame that enter the fit
_HIT_IOU = 0.5
_LEAST_SCORE = 0.05  # detections below are never shown, and would drown the others
# Per head: the output that is a confidence, and the operators that may make it out of logits.
_HEADS = {
    "detection": ("scores", {"Sigmoid"}),
    "segmentation": ("mask_confidence", {"Exp", "Softmax"}),  # Exp: of logits below the largest
}


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a head predicted: logits float [N] (sigmoid) or [N, C] (softmax), right or not [N]."""

    logits: np.ndarray
    right: np.ndarray

    def confidences(self, temperature: float = 1.0) -> np.ndarray:
        """float64 [N]: the confidence published at a temperature."""
        scaled = self.logits.astype(np.float64) / temperature
        if scaled.ndim == 1:
            return 1 / (1 + np.exp(-scaled))
        scaled -= scaled.max(axis=1, keepdims=True)
        return 1 / np.exp(scaled).sum(axis=1)


def expected_calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Gap between confidence and accuracy over 15 equal bins (Guo et al. 2017, equation 3)."""
    if not len(confidences):
        return 0.0
    bins = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
    promised = np.bincount(bins, confidences, _BINS)
    kept = np.bincount(bins, right.astype(float), _BINS)
    return float(np.abs(promised - kept).sum() / len(confidences))


def fit_temperature(found: Predictions) -> float:
    """The temperature of least negative log-likelihood of being right (Guo et al. 2017, sec. 4.2).

    Searched on a grid from 1/2 to 2: one number, no gradient, the same result everywhere. A
    network that would need more is not to be mended by a temperature. 1 where
    nothing can be learned: no prediction, or all alike right or wrong.
    """
    if not len(found.right) or found.right.all() or not found.right.any():
        return 1.0
    losses = []
    for temperature in _TEMPERATURES:
        p = np.clip(found.confidences(float(temperature)), _TINY, 1 - _TINY)
        losses.append(-np.mean(np.where(found.right, np.log(p), np.log1p(-p))))
    return float(_TEMPERATURES[int(np.argmin(losses))])


def collect_predictions(
    bundle: Bundle, model: ModelProto, dataset: Dataset, indices: Sequence[int]
) -> dict[str, Predictions]:
    """Predictions on labelled frames by task; tasks without labels or confidence are absent.

    A detection is right if it overlaps an object of its class by an IoU of at least 0.5 and no
    better detection has taken that; a pixel is right if its class is.
    """
    outputs = {o.name for o in model.graph.output}
    heads = {task: _head(model, task) for task, (name, _) in _HEADS.items() if name in outputs}
    logits_of = {task: node.input[0] for task, node in heads.items()}
    session = open_session(expose(model, [*outputs, *logits_of.values()]))
    names = [output.name for output in session.get_outputs()]
    spec, adapter = bundle.manifest.input, identity_adapter(bundle.manifest)
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for index in indices:
        frame = dataset.read(index)
        size = frame.image.shape[0], frame.image.shape[1]
        camera = bundle.manifest.camera
        geometry = Geometry(size, (spec.height, spec.width), spec.resize, camera)
        image = geometry.to_network(frame.image)[None]
        values = session.run(names, {"image": image, "adapter": adapter})
        found = dict(zip(names, values, strict=True))
        if "detection" in heads and dataset.boxes is not None:
            rows.setdefault("detection", []).append(_judge_boxes(found, frame, geometry))
        if "segmentation" in heads and frame.mask is not None:
            logits = found[logits_of["segmentation"]][0]
            pair = _judge_pixels(logits, frame.mask, dataset.ignore_index, geometry, index)
            rows.setdefault("segmentation", []).append(pair)
    return {
        task: Predictions(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
        for task, pairs in rows.items()
    }


def _judge_boxes(
    outputs: dict[str, np.ndarray], frame: LabelledFrame, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    found = decode_detections(outputs, geometry, score_threshold=_LEAST_SCORE)
    free = np.ones(len(frame.boxes), bool)
    right = np.zeros(len(found.boxes), bool)
    for index, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        low = np.maximum(box[:2], frame.boxes[:, :2])
        high = np.minimum(box[2:], frame.boxes[:, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        area = (box[2:] - box[:2]).prod() - shared
        area = area + (frame.boxes[:, 2:] - frame.boxes[:, :2]).prod(axis=1)
        overlap = np.where(free & (frame.labels == label), shared / np.maximum(area, _TINY), 0)
        if len(overlap) and overlap.max() >= _HIT_IOU:
            right[index], free[int(overlap.argmax())] = True, False
    scores = np.clip(found.scores.astype(np.float64), _TINY, 1 - _TINY)
    return np.log(scores / (1 - scores)), right


def _judge_pixels(
    logits: np.ndarray, label: np.ndarray, ignore: int | None, geometry: Geometry, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, C] of a random part of the labelled pixels, from logits [C, h, w]."""
    classes, height, width = logits.shape
    index = np.arange(height * width).reshape(height, width)
    # Masks are bytes, so the place each raw pixel is read from travels in three of them.
    parts = [(index >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    bytes_ = [geometry.mask_to_raw(part).astype(np.int64) for part in parts]
    places = (bytes_[0] + (bytes_[1] << 8) + (bytes_[2] << 16)).ravel()
    truth = label.ravel().astype(np.int64)
    judged = (places < index.size) & (truth < classes)
    if ignore is not None:
        judged &= truth != ignore
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(judged))[:_PIXELS]
    taken = logits.reshape(classes, -1)[:, places[chosen]].T
    return taken, taken.argmax(axis=1) == truth[chosen]


def set_temperature(model: ModelProto, task: str, temperature: float) -> ModelProto:
    """A copy of the network with the logits of one head divided by a temperature.

    The order of scores and the mask stay as they are; only confidences change.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    node = _head(copy, task)
    logits = node.input[0]
    inferred = onnx.shape_inference.infer_shapes(copy)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    factor, scaled = f"{task}_inverse_temperature", f"{logits}_{task}_tempered"
    copy.graph.initializer.append(helper.make_tensor(factor, kinds[logits], [], [1 / temperature]))
    place = list(copy.graph.node).index(node)
    node.input[0] = scaled
    name = f"{task}_temperature"
    copy.graph.node.insert(place, helper.make_node("Mul", [logits, factor], [scaled], name=name))
    return copy


def _head(model: ModelProto, task: str) -> NodeProto:
    """The node that turns a head's logits into confidences."""
    output, operators = _HEADS[task]
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers[output]
    while node.op_type not in operators:
        node = makers[node.input[0]]
    return node
