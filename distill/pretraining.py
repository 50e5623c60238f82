"""``pretrain``: an encoder from unlabelled images by any self-supervised method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from distill.checkpoints import gathered_weights
from distill.data.images import JoinedImages
from distill.data.multiview import MultiViews
from distill.encoders import RUN_WEIGHTS, Encoder, EncoderSpec
from distill.objectives.protocol import Objective, ObjectiveOptions, objective
from distill.pretraining_probe import PretrainProbe, check_images
from distill.runs import write_config
from distill.settings import PretrainSettings, load_settings
from distill.teachers import load_weights
from distill.training import Trainee, Trainer
from edge_runtime.errors import InputError, RefusedError, explain_validation
from edge_runtime.files import atomic_write_bytes, atomic_write_text

WEIGHTS = RUN_WEIGHTS
RECIPES = Path(__file__).parent / "recipes" / "pretrain"
# What may change when a run goes on.
_FREE = {"workers", "timeout", "log_every", "checkpoint_every", "bad_steps", "keep_encoders"}


def read_settings(
    method: str | None, recipe: Path | None, overrides: list[str]
) -> PretrainSettings:
    """Settings of a recipe, by default the method's packaged one, with overrides on top.

    Raises:
        InputError: neither is given, there is no such method, or a setting is wrong.
    """
    if method is not None:
        overrides = [f"method={objective(method).name}", *overrides]
    if recipe is None:
        if method is None:
            raise InputError("give --method NAME, or --config RECIPE.yaml with one")
        packaged = RECIPES / f"{method}.yaml"
        recipe = packaged if packaged.is_file() else None
    return load_settings(PretrainSettings, recipe, overrides)


def read_options(method: type[Objective], values: Mapping[str, Any]) -> ObjectiveOptions:
    """Options of a method, strictly.

    Raises:
        InputError: a key it does not have (names the nearest), or a wrong value.
    """
    try:
        return method.Options.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(
            explain_validation(error, method.Options, f"options of {method.name}")
        ) from error


def build_encoder(settings: PretrainSettings, weights: str | None) -> Encoder:
    """The trunk of the settings: random, or with weights of the hub, a file or another run.

    Raises:
        InputError: it cannot be built, or the weights are not of this architecture.
    """
    spec = EncoderSpec(settings.encoder, settings.encoder_args)
    encoder = Encoder(spec, hub=weights == "hub")
    if weights not in (None, "hub"):
        path = Path(str(weights))
        path = path / WEIGHTS if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"weights {path} not found; give hub, a .safetensors file or a run of pretrain"
            )
        load_weights(encoder.model, path, f"encoder {settings.encoder}")
    if settings.gradient_checkpointing:
        encoder.checkpoint_gradients()
    return encoder


def divide(count: int, settings: PretrainSettings, world: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on and of those held back, at most a tenth.

    Raises:
        InputError: fewer to train on than the global batch.
    """
    order = np.random.default_rng(settings.seed).permutation(count)
    held = min(settings.held_back, count // 10)
    batch = settings.batch_size * world
    if count - held < batch:
        raise InputError(
            f"{count - held} images to train on ({held} of {count} are held back), fewer than a "
            f"batch of {batch}; give more images or a smaller batch_size="
        )
    return np.sort(order[held:]), np.sort(order[:held])


class _Trainee(Trainee):
    def __init__(self, module: Objective, settings: PretrainSettings, probe: PretrainProbe) -> None:
        self.module, self.settings, self.judge = module, settings, probe
        self.student: nn.Module = module.kept()
        self.spread = torch.ones(
            ()
        )  # of the embeddings that the loss compares, where the method says it
        module.register_forward_hook(self._watch)
        self.prefix = next(n for n, m in module.named_modules() if m is self.student) + ".model."

    def _watch(self, module: nn.Module, batch: Any, losses: dict[str, Tensor]) -> None:
        del module, batch
        if "spread" in losses:
            self.spread = losses["spread"].detach()

    def groups(self) -> list[dict[str, Any]]:
        return self.module.groups(self.settings.weight_decay)  # type: ignore[operator]

    def begin_epoch(self, epoch: int) -> None:
        self.module.train()
        self.epoch = epoch

    def begin_step(self, progress: float) -> None:
        self.module.begin_step(progress)  # type: ignore[operator]

    def end_step(self, progress: float) -> None:
        self.module.end_step(progress)  # type: ignore[operator]

    def weights(self) -> dict[str, Tensor]:
        """Weights of the encoder worth keeping under timm's names; every process calls it."""
        state = gathered_weights(self.module)
        return {
            k.removeprefix(self.prefix): v.detach().cpu().contiguous()
            for k, v in state.items()
            if k.startswith(self.prefix)
        }

    def probe(self, student: nn.Module) -> dict[str, float]:
        del student
        figures, dead = self.judge(self.weights(), self.epoch + 1, float(self.spread))
        if dead:
            raise RefusedError(
                f"{dead} after epoch {self.epoch + 1}: this run is dead and was stopped. Begin "
                "again with a lower lr=, a longer warmup=, a larger batch_size= or stronger views "
                "(options.min_scale, options.colour); a collapse from the start points at images "
                "that are all alike"
            )
        return figures


def pretrain(
    images: JoinedImages,
    out: Path,
    settings: PretrainSettings,
    weights: str | None = None,
    resume: bool = False,
    devices: int = 1,
    num_nodes: int = 1,
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Trains an encoder and writes encoder.safetensors, under timm's names, to ``out``.

    Args:
        weights: hub, a .safetensors file or a run to start from; None is a random start.

    Returns:
        The summary that is also written to summary.json.

    Raises:
        InputError: settings, images or weights cannot be used.
        RefusedError: the embeddings have collapsed.
    """
    method = objective(settings.method)
    options = read_options(method, settings.options)
    trainer = Trainer(settings, out, accelerator, devices, num_nodes)
    fabric = trainer.fabric
    rows, held = divide(len(images), settings, fabric.world_size)
    check_images(images, rows)
    with fabric.rank_zero_first():  # one process fetches weights, the others find them
        encoder = build_encoder(settings, weights)
    torch.manual_seed(settings.seed)
    module = method(encoder, options)
    digest = images.digest()
    about = {"images": len(rows), "held_back": len(held), "data": digest, "weights": weights}
    if fabric.is_global_zero:
        write_config(out, "pretrain", settings, about)
    probe = PretrainProbe(images, rows, held, settings, fabric, out)
    trainee = _Trainee(module, settings, probe)
    views = MultiViews(images, rows, method, options, settings, encoder)
    identity = {"settings": settings.model_dump(mode="json", exclude=_FREE), "data": digest}
    trainer.fit(trainee, views, resume, identity)
    kept = trainee.weights()
    figures, _ = probe(kept, settings.epochs, float(trainee.spread))
    problems = images.problems()
    summary = {**about, "probe": figures, "skipped": trainer.skipped, "left_out": problems}
    if fabric.is_global_zero:
        atomic_write_bytes(out / WEIGHTS, save(kept))
        atomic_write_text(out / "summary.json", json.dumps(summary, indent=2))
    return summary
