"""The one training loop, on Lightning Fabric: any device, precision and number of processes."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric, seed_everything
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from distill.data.views import EpochBatches
from distill.settings import TrainSettings
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text


class Trainee(Protocol):
    """What the loop trains. ``module(batch)`` gives a dict of losses with the total as ``loss``."""

    module: nn.Module
    student: nn.Module  # part of module; its EMA is what is probed and kept

    def groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; ``lr`` is relative to the recipe's."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, for freezing and the like; a function of epoch only."""

    def probe(self, student: nn.Module) -> dict[str, float]:
        """Quality of the (averaged) student on held-back data; may be empty."""


def _atomic_save(state: dict[str, Any], path: Path) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class _Log:
    """metrics.csv (wide, one row a step that was logged) and TensorBoard events."""

    def __init__(self, out: Path, start: int) -> None:
        self.path = out / "metrics.csv"
        self.rows: list[dict[str, str]] = []
        if start and self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = [r for r in csv.DictReader(file) if int(r["step"]) <= start]
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start)

    def add(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        row = {"step": str(step), "epoch": str(epoch)}
        row |= {k: f"{v:.6g}" for k, v in values.items()}
        self.rows.append(row)
        for key, value in values.items():
            self.board.add_scalar(key, value, step)

    def write(self) -> None:
        names = list(dict.fromkeys(k for row in self.rows for k in row))
        lines = [",".join(names)]
        lines += [",".join(row.get(n, "") for n in names) for row in self.rows]
        atomic_write_text(self.path, "\n".join(lines) + "\n")
        self.board.flush()


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


class Trainer:
    """Runs one trainee to the end, checkpointing so that a killed run resumes exactly.

    Args:
        out: run folder; gets checkpoint.pt, metrics.csv and TensorBoard events.
        devices: processes on this machine; torchrun or SLURM set the rest through Fabric.
    """

    def __init__(
        self, settings: TrainSettings, out: Path, accelerator: str = "auto", devices: int = 1
    ) -> None:
        self.settings, self.out = settings, out
        several = devices > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            # Frozen trunks and untapped neck levels have no gradient in a step.
            strategy="ddp_find_unused_parameters_true" if several else "auto",
            precision=settings.precision,  # type: ignore[arg-type]
        )
        self.fabric.launch()
        seed_everything(settings.seed, verbose=False)

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

    def fit(
        self, trainee: Trainee, data: Dataset[Any], resume: bool, identity: Mapping[str, Any]
    ) -> nn.Module:
        """Trains and returns the averaged student.

        Args:
            resume: go on from ``checkpoint.pt`` where there is one.
            identity: what must agree between the checkpoint and this run.

        Raises:
            InputError: the checkpoint belongs to another run, or the loss is not finite.
        """
        s, fabric = self.settings, self.fabric
        # Convolutions on CPUs and tensor cores are fastest with channels last.
        trainee.module.to(memory_format=torch.channels_last)
        groups = [{**g, "base": g.pop("lr", 1.0)} for g in trainee.groups()]
        optimizer: Any = torch.optim.AdamW(groups, lr=s.lr, weight_decay=s.weight_decay)
        average = AveragedModel(
            trainee.student, multi_avg_fn=warmed_average(s.ema), use_buffers=True
        )
        module, optimizer = fabric.setup(trainee.module, optimizer)
        average.to(fabric.device)
        start = self._restore(module, optimizer, average, identity) if resume else 0
        loader, batches = self._loader(data, start)
        total = batches.per_epoch * s.epochs
        log = _Log(self.out, start) if fabric.is_global_zero else None
        with _progress(total, start) as advance:
            epoch = -1
            for step, batch in enumerate(loader, start):
                if step // batches.per_epoch != epoch:
                    epoch = step // batches.per_epoch
                    trainee.begin_epoch(epoch)
                losses = self._step(module, optimizer, trainee, batch, step, total)
                if (step + 1) % s.accumulate == 0:
                    average.update_parameters(trainee.student)
                advance(f"loss {losses['loss']:.4f}")
                self._record(log, trainee, average, losses, step, epoch, batches.per_epoch)
                if (step + 1) % s.checkpoint_every == 0 or step + 1 == total:
                    self._save(module, optimizer, average, identity, step + 1)
                    if log:
                        log.write()
        return average.module

    def _step(
        self,
        module: Any,
        optimizer: Any,
        trainee: Trainee,
        batch: Any,
        step: int,
        total: int,
    ) -> dict[str, float]:
        s = self.settings
        for group in optimizer.param_groups:
            group["lr"] = s.lr * group["base"] * rate(step, total, s.warmup)
        last = (step + 1) % s.accumulate == 0
        # Every step draws from its own stream, so that a resumed run repeats an unbroken one.
        torch.manual_seed(s.seed * 1_000_003 + step)
        with self.fabric.no_backward_sync(module, enabled=not last):
            losses: dict[str, Tensor] = module(batch)
            self.fabric.backward(losses["loss"] / s.accumulate)
        values = {k: float(v.detach()) for k, v in losses.items()}
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"the loss became {values['loss']} at step {step}: the last good state is "
                f"{self.out / 'checkpoint.pt'}; resume with a lower lr= or precision=32-true"
            )
        if last:
            self.fabric.clip_gradients(module, optimizer, max_norm=s.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return values

    def _record(
        self,
        log: _Log | None,
        trainee: Trainee,
        average: AveragedModel,
        losses: dict[str, float],
        step: int,
        epoch: int,
        per_epoch: int,
    ) -> None:
        if log is None:
            return
        ends = (step + 1) % per_epoch == 0
        values = {f"train/{k}": v for k, v in losses.items()}
        if ends and ((epoch + 1) % self.settings.probe_every == 0):
            found = trainee.probe(average.module)
            values |= {f"probe/{k}": v for k, v in found.items()}
            if found:
                shown = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
                print(f"epoch {epoch + 1}: loss {losses['loss']:.4f}, {shown}", flush=True)
        if ends or step % 10 == 0:
            log.add(step + 1, epoch + 1, values)

    def _save(
        self, module: Any, optimizer: Any, average: AveragedModel, identity: Any, step: int
    ) -> None:
        if self.fabric.is_global_zero:
            state = {
                "module": module.module.state_dict() if hasattr(module, "module") else {},
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict(),
                "identity": json.dumps(identity, sort_keys=True),
                "step": step,
            }
            _atomic_save(state, self.out / "checkpoint.pt")
        self.fabric.barrier()

    def _restore(self, module: Any, optimizer: Any, average: AveragedModel, identity: Any) -> int:
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(f"{path} is not a readable checkpoint: {error}") from error
        if state.get("identity") != json.dumps(identity, sort_keys=True):
            raise InputError(
                f"{path} belongs to a run with other settings ({state.get('identity')}); "
                "give the same settings, or another --out"
            )
        module.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        return int(state["step"])


class _progress:  # noqa: N801 - used as a context manager function
    """A progress bar with the time left."""

    def __init__(self, total: int, start: int) -> None:
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.task = self.bar.add_task("training", total=total, completed=start, note="")

    def __enter__(self) -> Callable[[str], None]:
        self.bar.start()
        return lambda note: self.bar.update(self.task, advance=1, note=note)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
