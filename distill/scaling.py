"""From one process to many: Fabric with DDP or FSDP, started by itself, torchrun or SLURM."""

from __future__ import annotations

import atexit
import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import distributed, nn
from torch.distributed import DistError
from torch.distributed.fsdp import fully_shard

from distill.settings import LoopSettings
from edge_runtime.errors import FieldsightError, InputError

# Where timm's models keep the parts that they call one after the other.
_STAGES = ("blocks", "stages", "layers", "layer1", "layer2", "layer3", "layer4", "features")
_BASE_BATCH = 256
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out", re.IGNORECASE)


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Shards parameters, gradients and optimiser state over all processes (FSDP2).

    A unit is a block of a transformer or a stage of a convolutional network: what timm calls as a
    module. The rest belongs to the root, so that an objective may call any part of its encoder.
    FSDP2, as FSDP1 needs GPUs and leaves no parameter by itself, which momentum encoders need.
    """
    mesh = mesh["data_parallel"]
    for trunk in [m for m in module.modules() if hasattr(m, "pretrained_cfg")]:
        for name in _STAGES:
            part = getattr(trunk, name, None)
            units = list(part) if isinstance(part, nn.Sequential | nn.ModuleList) else []
            for unit in units:
                if any(True for _ in unit.parameters()):
                    fully_shard(unit, mesh=mesh)
    return fully_shard(module, mesh=mesh)  # type: ignore[return-value]


def launched(devices: int, num_nodes: int) -> tuple[int, int]:
    """Processes a node and nodes: as torchrun says where it started this process, else as asked."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, num_nodes
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def make_fabric(
    settings: LoopSettings, accelerator: str = "auto", devices: int = 1, num_nodes: int = 1
) -> Fabric:
    """Fabric for these settings; starts the other processes where nothing else did.

    Raises:
        InputError: a combination that there is not, such as 16-mixed with fsdp.
    """
    devices, num_nodes = launched(devices, num_nodes)
    world = devices * num_nodes
    wait = timedelta(minutes=settings.timeout)
    strategy: Any = "auto"
    if settings.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            shard, data_parallel_size=world, tensor_parallel_size=1, timeout=wait
        )
    elif world > 1:
        # Frozen trunks and untapped neck levels have no gradient in a step.
        strategy = DDPStrategy(find_unused_parameters=True, timeout=wait)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=settings.precision,  # type: ignore[arg-type]
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"this machine or setting cannot be used for training: {error}") from error
    fabric.launch()
    atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Ends what connects this process to others, if anything does.

    Fabric does so for NCCL alone. Threads of gloo that outlive the interpreter abort the process,
    and sharded modules, which lie in cycles of references, keep them alive.
    """
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def base_rate(settings: LoopSettings, world: int) -> float:
    """Learning rate for the global batch (Goyal et al. 2017, section 2.1; sqrt for Adam)."""
    batch = settings.batch_size * settings.accumulate * world
    factors = {"none": 1.0, "linear": batch / _BASE_BATCH, "sqrt": (batch / _BASE_BATCH) ** 0.5}
    return settings.lr * factors[settings.lr_scaling]


@contextmanager
def lost_process(world: int, checkpoint: Path) -> Iterator[None]:
    """Says in words what the libraries between processes say when one of them is gone.

    Raises:
        FieldsightError: another process ended, or did not answer within ``timeout``.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world == 1 or not (isinstance(error, DistError) or _LOST.search(text)):
            raise
        raise FieldsightError(
            f"another process of this run ended or does not answer ({text.splitlines()[0]:.200}): "
            f"look at what it said; the last good state is {checkpoint}, go on with --resume"
        ) from error
