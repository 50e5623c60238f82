"""Teaching a bundle which adapter answers which looks.

Frames of the training domain are painted in random looks. A small network, the predictor, reads a
descriptor of the painted image and gives the student an adapter, under which it shall say of the
painted frame what it says of the clean one, and what the labels say where there are any. Gradients
go through the frozen student to the predictor alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from distill.data.looks import Look
from distill.data.views import resize_image, sample_generator
from distill.export import canary_labels
from distill.runs import write_config
from distill.settings import PredictorSettings
from distill.training import Trainee, Trainer
from edge_runtime.adaptation.consolidation.material import class_weight
from edge_runtime.adaptation.descriptor import SIZE, describe
from edge_runtime.adaptation.frozen import freeze
from edge_runtime.adaptation.network import Outputs, combine, identity, load_student, run
from edge_runtime.adaptation.predictor import FARTHEST, FILE, LAYERS, MOST_SCALE, adapter_order
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.rehearsal import UNLABELLED, Exam, recall, rehearsal_losses
from edge_runtime.adaptation.views import whole
from edge_runtime.bundle import Bundle, update_bundle
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.student import Student

LEAST_FRAMES, MOST_FRAMES = 16, 512  # spread evenly where there are more
_KEPT_OUT = 16  # every so many-th frame is for the probe
_NEAR = 12  # frames within which those lie that one descriptor is the mean of
_PROBED = 8  # looks in which the frames that are kept out are judged


class PredictorNetwork(nn.Module):
    """What `edge_runtime.adaptation.predictor.Predictor` computes, to be trained.

    Args:
        reference: Of the bundle.
        descriptors: float32 [N, SIZE], to learn their scale from.
        width: Of the hidden layers.
    """

    def __init__(self, reference: Reference, descriptors: np.ndarray, width: int) -> None:
        super().__init__()
        channels = [point.channels for point in reference.points]
        sizes = [SIZE, *[width] * (LAYERS - 1), 2 * sum(channels)]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairs)
        nn.init.zeros_(self.layers[-1].weight)  # the adapter that changes nothing
        nn.init.zeros_(self.layers[-1].bias)
        for name, values in {
            "centre": descriptors.mean(0),
            "spread": descriptors.std(0) + 1e-3,
            "unit": reference.spread,
        }.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))
        # No buffer: a moving average of whole numbers loses them to rounding.
        self.order = torch.from_numpy(adapter_order(channels))

    def forward(self, descriptor: Tensor) -> Tensor:
        """Adapters [B, A] for descriptors [B, SIZE]."""
        x = ((descriptor - self.centre) / self.spread).clamp(-FARTHEST, FARTHEST)
        for layer in self.layers[:-1]:
            x = nn.functional.silu(layer(x))
        scale, shift = self.layers[-1](x).chunk(2, dim=-1)
        scale = torch.exp(math.log(MOST_SCALE) * torch.tanh(scale))
        return torch.cat([scale, shift * self.unit], dim=-1)[..., self.order]

    def arrays(self) -> dict[str, np.ndarray]:
        """The file's content; see `Predictor`."""
        state = {f"{i}.{k}": v for i, m in enumerate(self.layers) for k, v in m.named_parameters()}
        state |= {name: getattr(self, name) for name in ("centre", "spread", "unit")}
        return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}


class PaintedFrames(TorchDataset[dict[str, Any]]):
    """Frames in random looks; what one looks like follows from (seed, epoch, index).

    Args:
        images: uint8 [N, H, W, 3], in the order they were recorded.
    """

    def __init__(self, images: np.ndarray, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        rng = sample_generator(self.seed, epoch, index)
        look = Look.draw(rng)
        shown = look(self.images[index], rng)
        # On the robot looks are means over frames of one place, few at first.
        start = max(0, index - _NEAR // 2)
        near = rng.choice(self.images[start : start + _NEAR], int(rng.integers(2)))
        described = [describe(shown), *(describe(look(image, rng)) for image in near)]
        mirrored = bool(rng.random() < 0.5)
        shown = shown[:, ::-1] if mirrored else shown
        return {
            "image": torch.from_numpy(np.ascontiguousarray(shown)),
            "descriptor": torch.from_numpy(np.mean(described, axis=0)),
            "index": index,
            "mirrored": mirrored,
        }


class _Module(nn.Module):
    """The losses of the student under the predicted adapters."""

    def __init__(
        self,
        predictor: PredictorNetwork,
        student: Student,
        known: list[Outputs],
        weight: np.ndarray | None,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.student = student
        self.known = known
        self.weight = None if weight is None else torch.from_numpy(weight)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = run(self.student, batch["image"], self.predictor(batch["descriptor"]))
        size = (batch["image"].shape[1], batch["image"].shape[2])
        asked = zip(batch["index"].tolist(), batch["mirrored"].tolist(), strict=True)
        told = combine(
            lambda *maps: torch.cat(maps).to(batch["image"].device),
            *(whole(size, mirrored).of_outputs(self.known[index]) for index, mirrored in asked),
        )
        weight = None
        if told.segmentation is not None and self.weight is not None:
            likeliest = told.segmentation.argmax(1)
            weight = self.weight.to(likeliest.device)[likeliest]
        parts = rehearsal_losses(found, told, weight)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


class _Trainee(Trainee):
    def __init__(self, module: _Module, exam: Exam, source: Tensor) -> None:
        self.module, self.student = module, module.predictor
        self.exam, self.source = exam, source

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.student.parameters())}]

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to freeze or to unfreeze."""

    @torch.no_grad()
    def probe(self, student: nn.Module) -> dict[str, float]:
        """How well frames that are kept out are known in some looks, as trained and adapted."""
        home = next(self.module.student.parameters()).device
        self.module.student.cpu()
        before, after = [], []
        for number in range(_PROBED):
            rng = np.random.default_rng(number)
            look = Look.draw(rng)
            shown = [describe(look(image, rng)) for image in self.exam.source[:3]]
            looks = torch.from_numpy(np.mean(shown, axis=0)).to(home)
            adapter = student(looks[None])[0].cpu()
            before.append(self.exam(self.source, look))
            after.append(self.exam(adapter, look))
        self.module.student.to(home)
        return {"as_trained": float(np.mean(before)), "adapted": float(np.mean(after))}


def teach_predictor(
    bundle: Bundle,
    data: Dataset,
    out: Path,
    settings: PredictorSettings,
    resume: bool = False,
    devices: int = 1,
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Teach a predictor and put it into the bundle.

    Args:
        bundle: With the student's weights and the reference of its training domain.
        data: Frames of the training domain, in the order they were recorded; with labels better.
        out: Folder of the run.

    Returns:
        The summary that is also written to summary.json.

    Raises:
        InputError: There are too few frames.
    """
    spec, count = bundle.manifest.input, len(data.samples)
    if count < LEAST_FRAMES:
        raise InputError(f"{data.name}: {count} frames, expected at least {LEAST_FRAMES}")
    size = spec.height, spec.width
    trainer = Trainer(settings, out, accelerator, devices)
    slow = trainer.fabric.device.type == "cpu" and "bf16" in settings.precision
    reference, student = Reference.of(bundle), freeze(load_student(bundle), strides=slow)
    chosen = np.linspace(0, count - 1, min(count, MOST_FRAMES)).astype(int)
    images = np.stack([resize_image(data.read(int(i)).image, size) for i in chosen])
    masks = canary_labels(data, chosen, size)["masks"]
    kept = np.arange(len(images)) % _KEPT_OUT == _KEPT_OUT - 1
    classes = len(bundle.manifest.classes.get("segmentation", []))
    labelled = classes > 0 and bool((masks != UNLABELLED).any())
    weight = class_weight(bundle, masks, classes) if classes else None
    shown = [masks[i] if labelled else None for i in np.flatnonzero(~kept)]
    known = [recall(student, *pair) for pair in zip(images[~kept], shown, strict=True)]
    exam = Exam(student, images[kept], masks[kept] if labelled else None)
    painted = PaintedFrames(images[~kept], settings.seed)
    looks = [painted[(settings.epochs, i)]["descriptor"].numpy() for i in range(len(painted))]
    torch.manual_seed(settings.seed)
    predictor = PredictorNetwork(reference, np.stack(looks), settings.width)
    trainee = _Trainee(_Module(predictor, student, known, weight), exam, identity(bundle))
    extra = {
        "bundle": bundle.manifest.name,
        "network": bundle.manifest.files["model.onnx"].sha256,
        "data": {"name": data.name, "digest": data.digest()},
        "frames": len(painted),
        "labelled": labelled,
    }
    if trainer.fabric.is_global_zero:
        write_config(out, "predictor", settings, extra)
    told = {"settings": settings.model_dump(mode="json"), "network": extra["network"]}
    averaged = trainer.fit(trainee, painted, resume, told)
    summary = {**extra, "probe": trainee.probe(averaged)}
    if trainer.fabric.is_global_zero:
        assert isinstance(averaged, PredictorNetwork)
        update_bundle(bundle, {FILE: save(averaged.arrays())})
        atomic_write_text(out / "summary.json", json.dumps(summary, indent=2))
    return summary
