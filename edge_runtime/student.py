"""The student network: a timm trunk with adapter points, a light pyramid neck and two heads.

Torch and timm are needed here and nowhere else on the robot; only training, export and on-device
refinement import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_runtime.errors import InputError
from edge_runtime.heads import DetectionHead, Neck, SegmentationHead
from edge_runtime.manifest import AdapterPointSpec, StudentSpec

TASKS = ("detection", "segmentation")
_ADAPTED = (4, 8, 16)  # strides of the trunk's levels that are adapter points
_FEW_CHANNELS = 16  # up to which a level at stride 2 is one, too: more cost more than all others
_STATISTICS_STRIDE = 8  # statistics are taken on a grid of about this stride of the input


@dataclass
class _AdapterFeed:
    """What the hooks of one forward pass read and write; empty between passes."""

    scale_shift: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    collect: bool = False


class _AdapterPoint:
    """The forward hook of one point. An object, so that a deep copy of the trunk gets its own."""

    def __init__(self, feed: _AdapterFeed, index: int) -> None:
        self.feed, self.index, self.stride = feed, index, 1

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if self.feed.collect:
            self.feed.samples.append(self._sample(output))
        if self.feed.scale_shift:
            output = _adapted(output, *self.feed.scale_shift[self.index])
        return output

    def _sample(self, output: Tensor) -> Tensor:
        step = max(1, _STATISTICS_STRIDE // self.stride)
        # As a pooling of single cells, sampling keeps ONNX Runtime's blocked layout; slices end it.
        return F.max_pool2d(output, 1, step) if step > 1 else output


def _adapted(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Features [B, C, H, W], scaled and shifted by [C], or each image by its own [B, C]."""
    if scale.dim() > 1 or scale.dtype != x.dtype:
        return x * scale[..., None, None] + shift[..., None, None]
    # As the batch norm of what has mean 0 and variance 1 it is one pass in ONNX Runtime, not two.
    return F.batch_norm(x, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, eps=0.0)


class Trunk(nn.Module):
    """A timm ``features_only`` trunk with a scale and a shift per channel at each adapter point.

    The points are realised as forward hooks so that the trunk keeps timm's parameter names and
    any of its checkpoints load unchanged.

    Args:
        name: timm's.
        points: Modules after which it can be adapted, in order; chosen if None.
    """

    def __init__(self, name: str, points: Sequence[str] | None = None) -> None:
        super().__init__()
        try:
            self.body = timm.create_model(name, features_only=True, pretrained=False)
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"student trunk {name!r} cannot give a feature pyramid ({error}); choose a timm "
                "model with features_only support, for instance mobilenetv4_conv_small"
            ) from error
        info = self.body.feature_info
        reductions, channels = info.reduction(), info.channels()
        if max(reductions) < 32 or 8 not in reductions:
            raise InputError(
                f"student trunk {name!r} has strides {reductions}; strides 8, 16 and 32 are needed"
            )
        self.levels = [reductions.index(r) for r in (4, 8, 16, 32)]
        self.channels = [channels[i] for i in self.levels]
        config = self.body.default_cfg if hasattr(self.body, "default_cfg") else {}
        config = config or timm.get_pretrained_cfg(name).to_dict()
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1) * 255, False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1) * 255, False)
        self._feed = _AdapterFeed()
        self.points: list[AdapterPointSpec] = []
        self._set_points(points or _levels(info))

    def _set_points(self, modules: Sequence[str]) -> None:
        found: dict[str, tuple[int, int]] = {}

        def measure(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            return lambda _m, _i, out: found.update({name: (out.shape[1], 64 // out.shape[2])})

        handles = [self._module(n).register_forward_hook(measure(n)) for n in modules]
        self.body.eval()
        with torch.no_grad():
            self.body(torch.zeros(1, 3, 64, 64))
        self.body.train()
        for handle in handles:
            handle.remove()
        self.points = [AdapterPointSpec(name=n, channels=found[n][0]) for n in modules]
        # From all means then all variances to mean and variance of point after point.
        ranges = torch.arange(2 * sum(p.channels for p in self.points)).view(2, -1)
        by_point = ranges.split([p.channels for p in self.points], dim=1)
        self.register_buffer("order", torch.cat([r.flatten() for r in by_point]), False)
        for index, name in enumerate(modules):
            point = _AdapterPoint(self._feed, index)
            point.stride = found[name][1]
            self._module(name).register_forward_hook(point)

    def _module(self, name: str) -> nn.Module:
        try:
            return self.body.get_submodule(name)
        except AttributeError:
            return self.body.get_submodule(name.replace(".", "_"))

    @property
    def adapter_size(self) -> int:
        """Length A of the adapter vector: a scale and a shift per channel and point."""
        return 2 * sum(p.channels for p in self.points)

    def forward(
        self, image: Tensor, adapter: Tensor | None = None, statistics: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """Features at strides 4, 8, 16 and 32, and the statistics if asked for.

        Args:
            image: uint8 or float [B, H, W, 3], RGB in 0..255.
            adapter: float32 [A], per point scale then shift, or [B, A], one an image; None means
                as trained.
            statistics: whether to return per point mean and variance, float32 [A].
        """
        x = image.float().permute(0, 3, 1, 2)
        x = (x - self.mean) / self.std
        feed = self._feed
        feed.collect = statistics
        if adapter is not None:
            sizes = [p.channels for p in self.points for _ in range(2)]
            parts = torch.split(adapter, sizes, dim=-1)
            feed.scale_shift = list(zip(parts[::2], parts[1::2], strict=True))
        try:
            features = self.body(x)
            taken = self._statistics(feed.samples) if statistics else None
        finally:
            feed.scale_shift, feed.samples, feed.collect = [], [], False
        return [features[i] for i in self.levels], taken

    def _statistics(self, samples: list[Tensor]) -> Tensor:
        """Per point mean then variance."""
        mean = torch.cat([s.mean(dim=(2, 3)) for s in samples], dim=1).flatten()
        square = torch.cat([(s * s).mean(dim=(2, 3)) for s in samples], dim=1).flatten()
        both = torch.cat([mean, (square - mean * mean).clamp_min(0)])
        return both.index_select(0, self.order)


def _levels(info: Any) -> list[str]:
    """Modules of the levels that are worth an adapter point."""
    return [
        level["module"]
        for level in info
        if level["reduction"] in _ADAPTED
        or (level["reduction"] == 2 and level["num_chs"] <= _FEW_CHANNELS)
    ]


class Student(nn.Module):
    """Trunk, neck and the heads of the tasks it was built for.

    Args:
        trunk: timm name of the trunk.
        classes: number of classes per task; a task that is absent has no head.
        points: of the trunk; those that it chooses if None.
    """

    def __init__(
        self,
        trunk: str = "mobilenetv4_conv_small",
        classes: dict[str, int] | None = None,
        neck_width: int = 96,
        head_width: int = 96,
        head_depth: int = 2,
        points: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        classes = classes or {}
        unknown = set(classes) - set(TASKS)
        if unknown:
            raise InputError(f"unknown tasks {sorted(unknown)}; known are {TASKS}")
        self.trunk = Trunk(trunk, points)
        self.neck = Neck(self.trunk.channels, neck_width)
        self.heads = nn.ModuleDict()
        if "detection" in classes:
            self.heads["detection"] = DetectionHead(
                neck_width, head_width, head_depth, classes["detection"]
            )
        if "segmentation" in classes:
            self.heads["segmentation"] = SegmentationHead(
                neck_width, head_width, classes["segmentation"]
            )
        self.spec = StudentSpec(
            trunk=trunk,
            neck_width=neck_width,
            head_width=head_width,
            head_depth=head_depth,
            adapter=self.trunk.points,
        )

    def pyramid(
        self, image: Tensor, adapter: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Trunk features and neck maps at strides 4 to 32 of a uint8 image [B, H, W, 3]."""
        features, _ = self.trunk(image, adapter)
        return features, self.neck(features)

    def forward(self, image: Tensor, adapter: Tensor | None = None) -> dict[str, object]:
        """Head outputs by task, as the losses take them."""
        _, pyramid = self.pyramid(image, adapter)
        return {task: head(pyramid) for task, head in self.heads.items()}


class DeployedNetwork(nn.Module):
    """The student as the bundle's ONNX graph: the network contract.

    Args:
        top_k: boxes kept before non-maximum suppression.
        mask_confidence: whether to add the winning class's probability as an output.
        adaptive: False leaves out ``adapter`` and ``statistics`` (for cost comparisons only).
    """

    def __init__(
        self,
        student: Student,
        top_k: int = 100,
        mask_confidence: bool = False,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        self.student, self.top_k = student, top_k
        self.mask_confidence, self.adaptive = mask_confidence, adaptive

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs in the order ``forward`` gives them."""
        names = []
        if "detection" in self.student.heads:
            names += ["boxes", "scores", "labels"]
        if "segmentation" in self.student.heads:
            names += ["mask"] + (["mask_confidence"] if self.mask_confidence else [])
        return names + (["statistics"] if self.adaptive else [])

    def forward(self, image: Tensor, adapter: Tensor | None = None) -> tuple[Tensor, ...]:
        """See DESIGN's network contract for names, types and shapes."""
        features, statistics = self.student.trunk(image, adapter, statistics=self.adaptive)
        pyramid = self.student.neck(features)
        outputs: list[Tensor] = []
        heads = self.student.heads
        if "detection" in heads:
            outputs += self._detect(*heads["detection"](pyramid)[:2])
        if "segmentation" in heads:
            outputs += self._segment(heads["segmentation"](pyramid))
        if statistics is not None:
            outputs.append(statistics)
        return tuple(outputs)

    def _detect(self, logits: Tensor, boxes: Tensor) -> list[Tensor]:
        best, labels = logits[0].max(dim=-1)
        scores, index = torch.topk(best, min(self.top_k, best.shape[0]))
        return [boxes[0][index], torch.sigmoid(scores), labels[index].to(torch.int32)]

    def _segment(self, logits: Tensor) -> list[Tensor]:
        logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
        # uint8 exists in TensorRT only as a graph output: the cast comes last.
        outputs = [logits.argmax(dim=1)[0].to(torch.uint8)]
        if self.mask_confidence:
            # The largest softmax value. As a softmax it would be transposed by ONNX Runtime, which
            # takes three times as long.
            below = logits - logits.amax(dim=1, keepdim=True)
            outputs.append(below.exp().sum(dim=1).reciprocal()[0])
        return outputs
