"""The bundle's student as a torch network, to learn further on the robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.errors import BundleError
from edge_runtime.heads import DetectionHead
from edge_runtime.student import Student


def load_student(bundle: Bundle) -> Student:
    """Rebuild the student from the manifest and its trained weights.

    Returns:
        The network in evaluation mode.

    Raises:
        BundleError: The bundle has no weights, or they are not those of its student.
    """
    spec = bundle.manifest.student
    classes = {str(task): len(names) for task, names in bundle.manifest.classes.items()}
    widths = spec.neck_width, spec.head_width, spec.head_depth
    points = [point.name for point in spec.adapter]
    try:
        student = Student(spec.trunk, classes, *widths, points)
    except AttributeError as error:  # torch's, where a module has no such child
        raise BundleError(
            f"{bundle.path}: {spec.trunk} has no such adapter point: {error}"
        ) from None
    path = bundle.file("student.safetensors")
    try:
        state = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None
    own = student.state_dict()
    if wrong := sorted(
        name
        for name in own.keys() | state.keys()
        if name not in own or name not in state or own[name].shape != state[name].shape
    ):
        raise BundleError(
            f"{path}: {len(wrong)} tensors are not those of {spec.trunk} (first: {wrong[0]}); "
            "use the version of timm that the manifest names, or export the bundle again"
        )
    if student.spec.adapter != spec.adapter:
        raise BundleError(
            f"{bundle.path}: in this version of timm the adapter points of {spec.trunk} have other "
            "channels; use the version that the manifest names"
        )
    student.load_state_dict(state)
    return student.eval()


def identity(bundle: Bundle) -> Tensor:
    """The adapter that changes nothing, float32 [A]."""
    return torch.from_numpy(identity_adapter(bundle.manifest))


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a student says about a batch, before anything is decided.

    Attributes:
        features: Finest pyramid map but one, float [B, C, H/8, W/8].
        segmentation: Logits, float [B, classes, H/4, W/4], or None without that head.
        scores: Class logits of detection by level, float [B, classes, h, w] each, or None.
        boxes: Distances to left, top, right and bottom by level, float [B, 4, h, w] in units of
            the level's stride, or None.
    """

    features: Tensor
    segmentation: Tensor | None
    scores: list[Tensor] | None
    boxes: list[Tensor] | None


def combine(function: Callable[..., Tensor], *outputs: Outputs) -> Outputs:
    """Apply a function to each map of some outputs, or to the corresponding maps of several."""

    def levels(maps: Sequence[list[Tensor] | None]) -> list[Tensor] | None:
        present = [m for m in maps if m is not None]
        if len(present) < len(maps):
            return None
        return [function(*level) for level in zip(*present, strict=True)]

    masks = [o.segmentation for o in outputs if o.segmentation is not None]
    return Outputs(
        function(*(o.features for o in outputs)),
        function(*masks) if len(masks) == len(outputs) else None,
        levels([o.scores for o in outputs]),
        levels([o.boxes for o in outputs]),
    )


def probable(outputs: Outputs) -> Outputs:
    """The outputs with both heads' logits as probabilities."""
    return replace(
        outputs,
        segmentation=None if outputs.segmentation is None else outputs.segmentation.softmax(1),
        scores=None if outputs.scores is None else [s.sigmoid() for s in outputs.scores],
    )


def row(outputs: Outputs, index: int) -> Outputs:
    """One image's outputs, with leading 1."""
    return combine(lambda maps: maps[index : index + 1], outputs)


def run(student: Student, image: Tensor, adapter: Tensor | None = None) -> Outputs:
    """Run a student and lay its outputs out as maps.

    Args:
        student: The network.
        image: uint8 or float [B, H, W, 3], RGB in 0..255, H and W multiples of 32.
        adapter: float32 [A] or [B, A], or None for as trained.
    """
    _, pyramid = student.pyramid(image, adapter)
    heads: nn.ModuleDict = student.heads
    segmentation = heads["segmentation"](pyramid) if "segmentation" in heads else None
    if "detection" not in heads:
        return Outputs(pyramid[1], segmentation, None, None)
    logits, boxes, points = heads["detection"](pyramid)
    x, y, stride = points.unbind(-1)
    centre = torch.stack([x, y], -1)
    sides = torch.cat([centre - boxes[..., :2], boxes[..., 2:] - centre], -1) / stride[:, None]
    scores, distances, at = [], [], 0
    for level in pyramid[1 : 1 + len(DetectionHead.strides)]:
        height, width = level.shape[-2:]
        part = slice(at, at + height * width)
        scores.append(logits[:, part].transpose(1, 2).unflatten(2, (height, width)))
        distances.append(sides[:, part].transpose(1, 2).unflatten(2, (height, width)))
        at += height * width
    return Outputs(pyramid[1], segmentation, scores, distances)
