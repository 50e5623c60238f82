"""A machine with a fake GPU and a fake TensorRT, put in the place of the real modules."""

from __future__ import annotations

import gc
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.engines import building, cuda_graph
from edge_runtime.engines.plan_cache import PlanCache
from fakes.cuda import FakeCuda
from fakes.cuda_graphs import FakeLibrary
from fakes.imitation import GENERATIONS
from fakes.tensorrt import FakeTensorRT

# Tests that are not about versions run with this one; FIELDSIGHT_FAKE_TENSORRT names another.
GENERATION = os.environ.get("FIELDSIGHT_FAKE_TENSORRT", GENERATIONS[0])


class Machine:
    """What a test sees of such a machine.

    Attributes:
        cuda: The GPU and driver.
        trt: The installed TensorRT.
        cache: The plan cache that engines use.
        generation: Of the installed TensorRT, such as "10.3".
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch, self._folder = monkeypatch, folder
        monkeypatch.setenv("FIELDSIGHT_CACHE", str(folder))
        self.cache = PlanCache()

    def install(self, generation: str = GENERATION, **gpu: Any) -> Machine:
        """Start anew with this TensorRT and this GPU; the plan cache stays."""
        self.generation = generation
        self.cuda = FakeCuda(**gpu)
        self.trt = FakeTensorRT(generation, self.cuda)
        package: Any = types.ModuleType("pycuda")
        package.driver = self.cuda.driver()
        library = FakeLibrary(self.cuda)
        self._patch.setitem(sys.modules, "pycuda", package)
        self._patch.setitem(sys.modules, "pycuda.driver", package.driver)
        self._patch.setitem(sys.modules, "tensorrt", self.trt.module)
        self._patch.setattr(cuda_graph, "load_library", lambda: library)
        building.logger.cache_clear()
        return self

    def calls(self) -> list[str]:
        """What was called since last asked, without the contexts' push and pop."""
        calls = [call for call in self.cuda.calls if call not in ("push", "pop")]
        self.cuda.calls.clear()
        return calls

    def plans(self) -> list[Path]:
        """The plans in the cache."""
        return sorted(self.cache.folder.glob("*.plan"))

    def check_clean(self) -> None:
        """Nothing is left on the GPU, the context was released once, nothing went wrong."""
        gc.collect()
        assert self.cuda.faults == []
        assert sorted(self.cuda.live.values()) == []
        assert not self.cuda.graphs and not self.cuda.launchable
        assert self.cuda.retained == 0
        stacks = self.cuda.stacks
        assert not stacks.pycuda and not stacks.driver
        assert "leave-cuda" not in {thread.name for thread in threading.enumerate()}
