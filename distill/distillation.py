"""``distill``: teachers into the trunk and neck of a student, without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from distill.data.cache import CachedViews, FeatureCache
from distill.data.views import UnlabelledViews
from distill.evaluation.probe import linear_miou, probe_frames
from distill.objectives.features import FeatureDistillation
from distill.runs import save_student, write_config
from distill.settings import DistillSettings
from distill.teachers import Teacher, TeacherSpec
from distill.training import Trainee, Trainer
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.student import Student

Targets = list[tuple[Tensor, Tensor]]
TeacherPass = Callable[[Tensor], Targets]
_FIT_IMAGES = 64


class _Module(nn.Module):
    """Student, objective and, without a cache, the teachers' forward pass."""

    def __init__(
        self, student: Student, objective: FeatureDistillation, tap: int, teach: TeacherPass | None
    ) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.level = (4, 8, 16, 32).index(tap)
        self.teach = teach

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features, pyramid = self.student.pyramid(batch["image"])
        if self.teach is None:
            count = sum(k.startswith("dense_") for k in batch)
            targets = [(batch[f"dense_{i}"], batch[f"pooled_{i}"]) for i in range(count)]
        else:
            targets = self.teach(batch["clean"])
        return self.objective(pyramid[self.level], features[-1].mean(dim=(2, 3)), targets)


class _Trainee(Trainee):
    def __init__(self, module: _Module, probe: Dataset | None, settings: DistillSettings) -> None:
        self.module, self.student = module, module.student
        self.data = probe
        self.frames = probe_frames(probe, settings.size) if probe is not None else []

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.module.parameters() if p.requires_grad]}]

    def begin_epoch(self, epoch: int) -> None:
        del epoch
        self.module.train()

    def probe(self, student: nn.Module) -> dict[str, float]:
        if self.data is None or len(self.frames) < 2:
            return {}
        student.eval()
        device = next(student.parameters()).device

        def stride_8(image: Tensor) -> Tensor:
            dense: Tensor = student.pyramid(image.to(device))[1][1]  # type: ignore[operator]
            return dense

        return {"linear_miou": linear_miou(stride_8, self.frames, self.data)}


class TeacherPanel:
    """Several teachers as one callable, each standardised on images of this data."""

    def __init__(self, specs: list[TeacherSpec], views: UnlabelledViews, size: tuple[int, int]):
        self.teachers = [Teacher(spec) for spec in specs]
        count = min(len(views), _FIT_IMAGES)
        picks = [int(i) for i in torch.linspace(0, len(views) - 1, count)]
        images = torch.stack([torch.from_numpy(views.view(0, i, size)) for i in picks])
        for teacher in self.teachers:
            teacher.fit_standardiser(list(images.split(8)))

    @torch.no_grad()
    def __call__(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [teacher.to(image.device)(image) for teacher in self.teachers]


def _cached(
    root: Path,
    views: UnlabelledViews,
    datasets: list[Dataset],
    specs: list[TeacherSpec],
    settings: DistillSettings,
    device: torch.device,
) -> CachedViews:
    """Opens or makes one cache per input size that the recipe uses."""
    sizes = {settings.size_at(e) for e in range(settings.epochs)}
    caches: dict[tuple[int, int], FeatureCache] = {}
    panel: TeacherPanel | None = None
    for size in sorted(sizes):
        shown = f"{size[0]}x{size[1]}"
        parts = [s.digest() for s in specs] + [d.digest() for d in datasets]
        parts += [shown, str(settings.views), str(settings.seed), str(settings.min_scale)]
        folder = root / FeatureCache.key(parts)
        if not (folder / "done.json").is_file() and panel is None:
            panel = TeacherPanel(specs, views, settings.size)

        def teach(images: Tensor, panel: TeacherPanel | None = panel) -> Targets:
            assert panel is not None, "a complete cache never asks for its teachers"
            return panel(images.to(device))

        with Progress() as bar:
            task = bar.add_task(f"teacher features {shown}", total=len(views) * settings.views)
            caches[size] = FeatureCache.build(
                folder,
                views,
                size,
                settings.views,
                teach,
                lambda n, t=task: bar.advance(t, n),  # type: ignore[misc]
            )
    return CachedViews(caches, settings, settings.seed)


def distil(
    datasets: list[Dataset],
    teachers: list[str],
    student_name: str,
    out: Path,
    settings: DistillSettings,
    cache: Path | None = None,
    probe: Dataset | None = None,
    encoder: Path | None = None,
    resume: bool = False,
    devices: int = 1,
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Runs a distillation and writes the student's trunk and neck to ``out``.

    Args:
        cache: folder of cached teacher features; None runs the teachers every step.
        probe: labelled data for the linear probe.
        encoder: weights file the trunk starts from; None is random initialisation.

    Returns:
        The summary that is also written to summary.json.
    """
    if not teachers:
        raise InputError("give at least one --teacher NAME or NAME@weights.safetensors")
    specs = [TeacherSpec.parse(t) for t in teachers]
    trainer = Trainer(settings, out, accelerator, devices)
    views = UnlabelledViews(datasets, settings, settings.seed)
    student = Student(
        student_name,
        neck_width=settings.neck_width,
        head_width=settings.head_width,
        head_depth=settings.head_depth,
    )
    if encoder is not None:
        from distill.finetuning import load_encoder

        load_encoder(student, encoder)
    extra = {
        "student": student_name,
        "teachers": teachers,
        "images": len(views),
        "data": [{"name": d.name, "digest": d.digest()} for d in datasets],
    }
    if trainer.fabric.is_global_zero:
        write_config(out, "distill", settings, extra)
    teach: TeacherPass | None = None
    if cache is not None:
        with trainer.fabric.rank_zero_first():  # one process fills it, the others open it
            data: Any = _cached(cache, views, datasets, specs, settings, trainer.fabric.device)
        sample = data[(0, 0)]
        channels = [
            (sample[f"dense_{i}"].shape[0], sample[f"pooled_{i}"].shape[0])
            for i in range(len(specs))
        ]
    else:
        data = views
        teach = TeacherPanel(specs, views, settings.size)
        channels = [(t.channels, t.pooled_channels) for t in teach.teachers]
    # The heads' weights must not depend on whether teachers were run before this line.
    torch.manual_seed(settings.seed)
    objective = FeatureDistillation(
        (settings.neck_width, student.trunk.channels[-1]), channels, settings.terms
    )
    trainee = _Trainee(_Module(student, objective, settings.tap, teach), probe, settings)
    identity = {"settings": settings.model_dump(mode="json"), "student": student_name}
    averaged = trainer.fit(trainee, data, resume, identity)
    summary = {**extra, "probe": trainee.probe(averaged)}
    if trainer.fabric.is_global_zero:
        save_student(out, averaged)
        atomic_write_text(out / "summary.json", json.dumps(summary, indent=2))
    return summary
