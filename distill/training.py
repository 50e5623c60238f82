"""The one training loop, on Lightning Fabric: any device, precision and number of processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import seed_everything
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from distill.checkpoints import (
    gathered_optimizer,
    gathered_weights,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from distill.data.views import EpochBatches
from distill.objectives.schedules import cosine
from distill.optimisers import OPTIMISERS
from distill.scaling import base_rate, lost_process, make_fabric
from distill.settings import LoopSettings
from distill.sync_norm import synchronise_batch_norms
from distill.training_log import MetricsLog, progress
from edge_runtime.errors import InputError


class Trainee(Protocol):
    """What the loop trains. ``module(batch)`` gives a dict of losses with the total as ``loss``."""

    module: nn.Module
    student: nn.Module  # part of module; it, or its average where ema is set, is probed and kept

    def groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; ``lr`` is relative to the recipe's."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, for freezing and the like; a function of epoch only."""

    def begin_step(self, progress: float) -> None:
        """Called before each step's forward pass; ``progress`` runs from 0 to 1."""
        del progress

    def end_step(self, progress: float) -> None:
        """Called after each step of the optimiser."""
        del progress

    def probe(self, student: nn.Module) -> dict[str, float]:
        """Quality of the (averaged) student on held-back data; may be empty.

        Every process calls it. What it raises ends the run.
        """


def rate(step: int, total: int, warmup: float) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to zero."""
    first = max(1, int(total * warmup))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, total - first)))


def warmed_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average whose decay rises as (1 + n) / (10 + n) after n updates.

    Without the rise a short run would end on an average of its random start.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)

    return update


class _Buffers:
    """Buffers as they were before a step: one without a finite loss spoils batch statistics."""

    def __init__(self, module: nn.Module) -> None:
        self.live = [b for b in module.buffers() if b.is_floating_point()]
        self.kept = [b.clone() for b in self.live]

    @torch.no_grad()
    def keep(self) -> None:
        for kept, live in zip(self.kept, self.live, strict=True):
            kept.copy_(live)

    @torch.no_grad()
    def give_back(self) -> None:
        for kept, live in zip(self.kept, self.live, strict=True):
            live.copy_(kept)


class Trainer:
    """Runs one trainee to the end, checkpointing so that a killed run resumes exactly.

    Args:
        out: run folder; gets checkpoint.pt, metrics.csv and TensorBoard events.
        devices: processes on this machine, of ``num_nodes`` machines; under torchrun what it says.
    """

    def __init__(
        self,
        settings: LoopSettings,
        out: Path,
        accelerator: str = "auto",
        devices: int = 1,
        num_nodes: int = 1,
    ) -> None:
        self.settings, self.out = settings, out
        self.fabric = make_fabric(settings, accelerator, devices, num_nodes)
        seed_everything(settings.seed, verbose=False)
        self.skipped = self._bad = 0

    def _loader(self, data: Dataset[Any], start: int) -> tuple[Any, EpochBatches]:
        s = self.settings
        batches = EpochBatches(
            len(data),  # type: ignore[arg-type]
            s.batch_size,
            s.epochs,
            s.seed,
            start,
            self.fabric.global_rank,
            self.fabric.world_size,
        )
        loader: DataLoader[Any] = DataLoader(
            data, batch_sampler=batches, num_workers=s.workers, persistent_workers=False
        )
        return self.fabric.setup_dataloaders(loader, use_distributed_sampler=False), batches

    def _setup(self, trainee: Trainee) -> tuple[Any, Any]:
        """The module and its optimiser as Fabric wraps them; sharding replaces parameters."""
        s, fabric = self.settings, self.fabric
        if s.strategy != "fsdp":  # which shards contiguous parameters only
            # Convolutions on CPUs and tensor cores are fastest with channels last.
            trainee.module.to(memory_format=torch.channels_last)
        if s.sync_batchnorm and fabric.world_size > 1:
            synchronise_batch_norms(trainee.module, fabric.device)
        module = fabric.setup_module(trainee.module)
        # What is trained is only known once sharding has replaced the parameters.
        groups = [{**g, "base": g.pop("lr", 1.0)} for g in trainee.groups()]
        self.base = base_rate(s, fabric.world_size)
        optimizer = OPTIMISERS[s.optimizer](groups, self.base, s.weight_decay)
        return module, fabric.setup_optimizers(optimizer)

    def fit(
        self, trainee: Trainee, data: Dataset[Any], resume: bool, identity: Mapping[str, Any]
    ) -> nn.Module:
        """Trains and returns the averaged student, or without ``ema`` the student.

        Args:
            resume: go on from ``checkpoint.pt`` where there is one.
            identity: what must agree between the checkpoint and this run.

        Raises:
            InputError: the checkpoint belongs to another run, or the loss stays without a finite
                value.
        """
        with lost_process(self.fabric.world_size, self.out / "checkpoint.pt"):
            return self._fit(trainee, data, resume, identity)

    def _fit(
        self, trainee: Trainee, data: Dataset[Any], resume: bool, identity: Mapping[str, Any]
    ) -> nn.Module:
        s, fabric = self.settings, self.fabric
        module, optimizer = self._setup(trainee)
        average = None
        if s.ema:
            average = AveragedModel(
                trainee.student, multi_avg_fn=warmed_average(s.ema), use_buffers=True
            )
            average.to(fabric.device)
        self.trainee, self.average = trainee, average
        self.identity = {**identity, "processes": fabric.world_size}
        start = self._restore(optimizer) if resume else 0
        loader, batches = self._loader(data, start)
        total = batches.per_epoch * s.epochs
        self.log = MetricsLog(self.out, start) if fabric.is_global_zero else None
        self.buffers = _Buffers(trainee.module)
        with progress(total, start, fabric.is_global_zero) as advance:
            epoch = -1
            for step, batch in enumerate(loader, start):
                if step // batches.per_epoch != epoch:
                    epoch = step // batches.per_epoch
                    trainee.begin_epoch(epoch)
                losses = self._step(module, optimizer, batch, step, total)
                advance(f"loss {losses['loss']:.4f}")
                self._record(losses, step, epoch, batches.per_epoch)
                due = (step + 1) % s.checkpoint_every == 0 or step + 1 == total
                if due and not self._bad:
                    self._save(optimizer, step + 1)
        return average.module if average else trainee.student

    def _step(
        self, module: Any, optimizer: Any, batch: Any, step: int, total: int
    ) -> dict[str, float]:
        s, done = self.settings, step / total
        for group in optimizer.param_groups:
            group["lr"] = self.base * group["base"] * rate(step, total, s.warmup)
            if s.final_weight_decay is not None and group["weight_decay"]:
                group["weight_decay"] = cosine(done, s.weight_decay, s.final_weight_decay)
        last = (step + 1) % s.accumulate == 0
        # Every step draws from its own stream, so that a resumed run repeats an unbroken one.
        world = self.fabric.world_size
        torch.manual_seed((s.seed * 1_000_003 + step) * world + self.fabric.global_rank)
        self.buffers.keep()
        self.trainee.begin_step(done)
        with self.fabric.no_backward_sync(module, enabled=not last and world > 1):
            losses: dict[str, Tensor] = module(batch)
            self.fabric.backward(losses["loss"] / s.accumulate)
        means = torch.stack([v.detach().float() for v in losses.values()])
        means = self.fabric.all_reduce(means, reduce_op="mean") if world > 1 else means
        values = dict(zip(losses, means.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            self._skip(optimizer, f"the loss became {values['loss']} at step {step}")
        elif last:
            self._advance(module, optimizer, step, done)
        return values

    def _advance(self, module: Any, optimizer: Any, step: int, done: float) -> None:
        norm = self.fabric.clip_gradients(
            module, optimizer, max_norm=self.settings.clip, error_if_nonfinite=False
        )
        # The gradient scaler of fp16 skips such a step itself, and learns from it.
        if not math.isfinite(float(norm)) and "16-mixed" != self.settings.precision:
            self._skip(optimizer, f"the gradient became {float(norm)} at step {step}")
            return
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.trainee.end_step(done)
        if self.average is not None:
            self.average.update_parameters(self.trainee.student)
        self._bad = 0

    def _skip(self, optimizer: Any, why: str) -> None:
        """Leaves a step out; too many in a row end the run."""
        optimizer.zero_grad(set_to_none=True)
        self.buffers.give_back()
        self._bad += 1
        self.skipped += 1
        if self._bad > self.settings.bad_steps:
            raise InputError(
                f"{why}, and in the {self._bad - 1} before it: the last good state is "
                f"{self.out / 'checkpoint.pt'}; resume with a lower lr= or precision=32-true"
            )

    def _record(self, losses: dict[str, float], step: int, epoch: int, per_epoch: int) -> None:
        ends = (step + 1) % per_epoch == 0
        values = {f"train/{k}": v for k, v in losses.items()}
        if ends and ((epoch + 1) % self.settings.probe_every == 0):
            student = self.average.module if self.average else self.trainee.student
            found = self.trainee.probe(student)
            values |= {f"probe/{k}": v for k, v in found.items()}
            if found and self.log:
                shown = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
                print(f"epoch {epoch + 1}: loss {losses['loss']:.4f}, {shown}", flush=True)
        if self.log and (ends or step % self.settings.log_every == 0):
            self.log.add(step + 1, epoch + 1, values)

    def _save(self, optimizer: Any, step: int) -> None:
        weights = gathered_weights(self.trainee.module)
        optimised = gathered_optimizer(self.trainee.module, optimizer.optimizer)
        if self.fabric.is_global_zero:
            state = {
                "module": weights,
                "optimizer": optimised,
                "average": self.average.state_dict() if self.average else {},
                "identity": json.dumps(self.identity, sort_keys=True),
                "step": step,
            }
            if self.log:  # first: a resumed run drops rows after its checkpoint, none before
                self.log.write()
            write_checkpoint(self.out / "checkpoint.pt", state)
        self.fabric.barrier()

    def _restore(self, optimizer: Any) -> int:
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return 0
        state = read_checkpoint(path, self.identity)
        restore(self.trainee.module, optimizer.optimizer, state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        return int(state["step"])
