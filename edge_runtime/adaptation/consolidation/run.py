"""From a bundle and a memory of frames to a new bundle, or to the reasons against one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_runtime.adaptation.consolidation.acceptance import (
    AcceptanceLimits,
    Measured,
    Verdict,
    judge,
)
from edge_runtime.adaptation.consolidation.budget import Budget
from edge_runtime.adaptation.consolidation.checkpoint import Checkpoint, Spent
from edge_runtime.adaptation.consolidation.lessons import Lessons, looks_of
from edge_runtime.adaptation.consolidation.material import REHEARSAL, Material, read_material
from edge_runtime.adaptation.consolidation.measuring import align, helps, measured, signature
from edge_runtime.adaptation.consolidation.refold import refold
from edge_runtime.adaptation.consolidation.selftraining import SelfTraining, blended
from edge_runtime.adaptation.consolidation.settings import ConsolidationSettings
from edge_runtime.adaptation.consolidation.writing import draft
from edge_runtime.adaptation.known_places import FILE as PLACES
from edge_runtime.adaptation.known_places import packed
from edge_runtime.adaptation.looks import Explanation
from edge_runtime.adaptation.network import load_student
from edge_runtime.bundle import Bundle, open_bundle, update_bundle
from edge_runtime.errors import BundleError, RefusedError
from edge_runtime.files import fsync_folder, sha256
from edge_runtime.student import Student

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Consolidated:
    """What came of a consolidation.

    Attributes:
        bundle: The new bundle.
        verdict: By which numbers it was accepted.
        steps: Steps of the optimiser.
        spent: Time and energy, over all starts of the run.
        stopped: Why learning ended early, or None.
        losses: Means over the last steps.
    """

    bundle: Bundle
    verdict: Verdict
    steps: int
    spent: Spent
    stopped: str | None
    losses: dict[str, float]


def consolidate(
    bundle: Bundle,
    memory: Path | str,
    out: Path,
    settings: ConsolidationSettings | None = None,
    limits: AcceptanceLimits | None = None,
    minutes: float | None = None,
    watt_hours: float | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Consolidated:
    """Tune a bundle's weights on remembered frames, without labels, and write a new bundle.

    A run that is killed goes on at its last checkpoint when it is started again with the same
    bundle, frames and settings, and ends with the same weights.

    Args:
        bundle: The bundle to start from; it is not changed.
        memory: Frames without labels; see `read_material`.
        out: The new bundle's folder.
        settings: How to learn.
        limits: What the new network may lose.
        minutes: Most wall-clock time of learning; it ends early with what was learnt.
        watt_hours: Most energy.
        restart: Begin anew, whatever an unfinished run has left.
        progress: Called with steps done and steps in all.

    Raises:
        InputError: Something given cannot be used.
        RefusedError: The place cannot be rehearsed, or the network was learnt but is not accepted;
            the message says why.
    """
    settings, limits = settings or ConsolidationSettings(), limits or AcceptanceLimits()
    _check_out(out)
    torch.set_num_threads(settings.threads)
    material = read_material(bundle, memory)
    student = load_student(bundle)
    spec = bundle.manifest.input
    # A graph that cannot take new weights is refused now rather than after the work.
    refold(bundle.file("model.onnx").read_bytes(), student, student, (spec.height, spec.width))
    checkpoint = Checkpoint(_checkpoint_path(out), _identity(bundle, material, settings))
    if restart:
        checkpoint.remove()
    adapter = align(bundle, material.place, settings.threads)
    looks = looks_of(bundle, student, material.place, material.source)
    lessons = Lessons(
        material.place,
        adapter,
        looks.style,
        material.source,
        material.masks,
        material.class_weight,
    )
    training = SelfTraining(student, lessons, settings)
    spent = checkpoint.load(training)
    if spent is not None:
        log.info("going on at step %d of %d", training.step, settings.steps)
    budget = Budget(minutes, watt_hours, spent)
    stopped, losses = _learn(training, checkpoint, budget, progress)
    note = _note(bundle, material, looks, settings, training, budget.spent, stopped)
    learnt = blended(student, training.teacher, settings.blend)
    kept_out = replace(material.kept_out, painted=_painted(training, material.kept_out.canary))
    material = replace(material, kept_out=kept_out)
    before = measured(bundle, material, adapter)
    result = _write_if_accepted(bundle, student, learnt, out, note, material, before, limits)
    checkpoint.remove()
    return Consolidated(*result, training.step, budget.spent, stopped, losses)


def _learn(
    training: SelfTraining,
    checkpoint: Checkpoint,
    budget: Budget,
    progress: Callable[[int, int], None],
) -> tuple[str | None, dict[str, float]]:
    """Steps until all are done or the budget is; returns why it stopped early, and mean losses."""
    settings, stopped = training.settings, None
    recent: list[dict[str, float]] = []
    while training.step < settings.steps and not (stopped := budget.exhausted()):
        recent = [*recent[-49:], training.advance()]
        progress(training.step, settings.steps)
        if training.step % settings.checkpoint_every == 0:
            budget.exhausted()
            checkpoint.save(training, budget.spent)
    checkpoint.save(training, budget.spent)
    names = recent[-1] if recent else {}
    return stopped, {name: float(np.mean([r[name] for r in recent])) for name in names}


def _write_if_accepted(
    bundle: Bundle,
    old: Student,
    new: Student,
    out: Path,
    note: dict[str, Any],
    material: Material,
    before: Measured,
    limits: AcceptanceLimits,
) -> tuple[Bundle, Verdict]:
    """Write a draft, judge it on frames kept out, and only then give it its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".consolidating.", dir=out.parent) as scratch:
        made = draft(bundle, old, new, Path(scratch) / out.name, note)
        adapter = align(made, material.place)
        verdict = judge(before, measured(made, material, adapter), limits)
        if not verdict.accepted:
            raise NotAccepted(verdict, bundle)
        if helps(made, material, adapter):  # labels have shown it: no trial is needed there
            place = signature(made, material.place), adapter
            made = update_bundle(made, {PLACES: packed([place])})
        os.rename(made.path, out)
    fsync_folder(out.parent)
    return open_bundle(out), verdict


class NotAccepted(RefusedError):
    """The consolidated network lost too much.

    Attributes:
        verdict: What speaks against it, by which numbers.
    """

    def __init__(self, verdict: Verdict, bundle: Bundle) -> None:
        reasons = "; ".join(verdict.reasons)
        super().__init__(f"not accepted: {reasons}. No bundle was written, keep {bundle.path}")
        self.verdict = verdict


def _painted(training: SelfTraining, images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] in the looks of the place, the noise the same each time."""
    rng = np.random.default_rng(0)
    style = training.curriculum.lessons.style
    return np.stack([style(image, rng).round().astype(np.uint8) for image in images])


def _check_out(out: Path) -> None:
    if out.suffix != ".bundle" or not out.stem:
        raise BundleError(f"{out}: a bundle's name must end in '.bundle', such as 'dusk.bundle'")
    if out.exists():
        raise BundleError(f"{out} exists already; give another --out")


def _checkpoint_path(out: Path) -> Path:
    return out.with_name(f".{out.stem}.consolidation.safetensors")


def _identity(bundle: Bundle, material: Material, settings: ConsolidationSettings) -> str:
    """Digest of all that decides the weights a run ends with."""
    parts = {
        "model": sha256(bundle.file("model.onnx")),
        "student": sha256(bundle.file("student.safetensors")),
        "canary": sha256(bundle.file("canary.npz")),
        "rehearsal": sha256(bundle.file(REHEARSAL)) if bundle.has(REHEARSAL) else None,
        "frames": material.digest,
        "settings": settings.model_dump(exclude={"checkpoint_every"}),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _note(
    bundle: Bundle,
    material: Material,
    looks: Explanation,
    settings: ConsolidationSettings,
    training: SelfTraining,
    spent: Spent,
    stopped: str | None,
) -> dict[str, Any]:
    """What the new bundle tells of its making."""
    return {
        "from": bundle.manifest.name,
        "from_model_sha256": bundle.manifest.files["model.onnx"].sha256,
        "frames": len(material.place),
        "frames_digest": material.digest,
        "looks": {"light": looks.lit, "distance": round(looks.distance, 2)},
        "steps": training.step,
        "stopped": stopped,
        "spent": asdict(spent),
        "settings": settings.model_dump(),
        "torch": torch.__version__,
    }
