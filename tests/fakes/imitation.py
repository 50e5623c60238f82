"""What the imitations of TensorRT's classes have in common: the names of their generation.

`api.json` was read off the wheels tensorrt-cu12-bindings 10.3.0, 10.13.0.35 and 11.4.0.106. Other
attributes raise AttributeError, those not imitated NotImplementedError.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fakes.tensorrt import FakeTensorRT

API: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("api.json").read_text())
GENERATIONS = tuple(API)


class PybindEnum(enum.Enum):
    """Like pybind11's enums: numbers only when asked, so `1 << flag` fails as it does there."""

    def __int__(self) -> int:
        return self.value


class Imitation:
    """Has the attributes of its generation and no others."""

    fake: FakeTensorRT
    trt: Any
    names: set[str]
    _extensible = False  # whether Python classes derive from it

    def __getattr__(self, name: str) -> Any:
        kind = type(self).__name__
        if name in self.names:
            raise NotImplementedError(f"the fake {kind} does not imitate '{name}'")
        raise AttributeError(f"'{kind}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.names and not self._extensible:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        object.__setattr__(self, name, value)
