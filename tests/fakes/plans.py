"""Plans of the fake TensorRT: an ONNX file, and which TensorRT and GPU it was built for."""

from __future__ import annotations

import json
from typing import Any

_PLAN = b"ftrt"


def pack_plan(head: list[Any], model: bytes) -> bytes:
    """A plan of the fake's own form: what it is for, and the ONNX file."""
    raw = json.dumps(head).encode()
    return _PLAN + len(raw).to_bytes(4, "little") + len(model).to_bytes(4, "little") + raw + model


def unpack_plan(plan: bytes) -> tuple[list[Any], bytes]:
    length = int.from_bytes(plan[4:8], "little")
    return json.loads(plan[12 : 12 + length]), plan[12 + length :]


def plan_problem(plan: bytes, version: str, capability: tuple[int, int]) -> str | None:
    """What TensorRT would log about a plan that it does not take."""
    if not plan.startswith(_PLAN):
        return (
            "Serialization (Serialization assertion stdMagicTag failed. Magic tag does not match)"
        )
    (found_version, found_capability), model = unpack_plan(plan)
    if len(model) != int.from_bytes(plan[8:12], "little"):
        return "Serialization (Serialization assertion size failed. Unexpected end of plan)"
    if found_version != version:
        return f"Version tag does not match. Note: Current Version: {version}"
    if tuple(found_capability) != capability:
        found, here = (".".join(map(str, c)) for c in (found_capability, capability))
        return (
            "The engine plan file is generated on an incompatible device, expecting compute "
            f"{here} got compute {found}, please rebuild."
        )
    return None
