"""CUDA without a GPU, as `pycuda.driver` shows it.

Host memory stands for the GPU's, under addresses of its own, so that a host address where the
GPU's belongs is found out. Work on a stream is queued and runs when the stream is waited for, so a
missing wait is found out.
"""

from __future__ import annotations

import itertools
import threading
import types
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fakes.cuda_objects import (
    Context,
    Device,
    DeviceAllocation,
    DeviceAttribute,
    Error,
    HostAllocation,
    HostAllocFlags,
    LogicError,
    MemoryError,
    Owned,
    Stream,
    Work,
)


class FakeCuda:
    """One machine's GPU and driver.

    Attributes:
        calls: Names of what was called, in order.
        faults: What a real driver would have suffered from.
        failures: Kind and text of the error to raise, by the name of the call.
        capture_codes: CUDA error codes to answer, by the name of the driver's call.
    """

    def __init__(
        self,
        name: str = "Orin",
        capability: tuple[int, int] = (8, 7),
        integrated: bool = True,
        devices: int = 1,
    ) -> None:
        self.name, self.capability = name, capability
        self.integrated, self.devices = integrated, devices
        self.initialised = False
        self.calls: list[str] = []
        self.faults: list[str] = []
        self.failures: dict[str, tuple[type[Exception], str]] = {}
        self.capture_codes: dict[str, int] = {}
        self.retained = 0
        self.live: dict[int, str] = {}
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.memory: dict[int, tuple[Owned, np.ndarray]] = {}
        self.numbers = itertools.count(0x5000)
        self.graphs: dict[int, list[Work]] = {}
        self.launchable: dict[int, list[Work]] = {}
        self._threads = threading.local()

    @property
    def stacks(self) -> Any:
        """This thread's stacks of contexts: pycuda's and the driver's."""
        if not hasattr(self._threads, "pycuda"):
            self._threads.pycuda, self._threads.driver = [], []
        return self._threads

    def record(self, call: str) -> None:
        self.calls.append(call)
        if failure := self.failures.get(call):
            raise failure[0](failure[1])

    def current(self, what: str) -> Context:
        """The current context, without which `what` fails."""
        if not self.stacks.pycuda:
            raise LogicError(f"{what} failed: no currently active context?")
        return self.stacks.pycuda[-1]

    def place(self, owner: Owned, memory: np.ndarray) -> int:
        address = next(self.numbers) << 24
        self.memory[address] = owner, memory
        return address

    def at(self, address: int, size: int) -> np.ndarray:
        """Memory as the GPU sees it."""
        if address not in self.memory:
            raise LogicError(f"an illegal memory access was encountered: {address:#x}")
        owner, memory = self.memory[address]
        if not owner.alive:
            raise LogicError(f"use of {owner.kind} after it was freed")
        if memory.nbytes < size:
            raise LogicError(f"access to {size} bytes of {memory.nbytes}")
        return memory[:size]

    def driver(self) -> types.ModuleType:
        """A module that takes the place of `pycuda.driver`."""
        module: Any = types.ModuleType("pycuda.driver")
        module.Error, module.MemoryError, module.LogicError = Error, MemoryError, LogicError
        module.device_attribute, module.host_alloc_flags = DeviceAttribute, HostAllocFlags
        module.Device = type("Device", (Device,), {"cuda": self})
        module.Stream = lambda flags=0: Stream(self, flags)
        module.init = self._init
        module.mem_get_info = lambda: (512 << 20, 8192 << 20)
        module.mem_alloc = self._mem_alloc
        module.pagelocked_empty = self._pagelocked_empty
        module.memcpy_htod_async = self._upload
        module.memcpy_dtoh_async = self._download
        return module

    def _init(self) -> None:
        self.record("init")
        self.initialised = True

    def _mem_alloc(self, size: int) -> DeviceAllocation:
        self.record("mem_alloc")
        return DeviceAllocation(self, size)

    def _pagelocked_empty(
        self, shape: Sequence[int], dtype: np.dtype[Any], order: str = "C", mem_flags: int = 0
    ) -> np.ndarray:
        self.record("pagelocked_empty")
        pages = HostAllocation(int(np.prod(shape)) * dtype.itemsize)
        pages.own(self, mem_flags)
        return np.ndarray(shape, dtype, buffer=pages)

    def _pinned(self, array: np.ndarray) -> None:
        if not isinstance(array.base, HostAllocation) or not array.base.owned.alive:
            raise LogicError("asynchronous copy of memory that is not page-locked")

    def _upload(self, dest: DeviceAllocation, src: np.ndarray, stream: Stream) -> None:
        self.current("memcpy_htod_async")
        self._pinned(src)
        self.record(f"upload {src.nbytes}")
        target, source = int(dest), src.reshape(-1).view(np.uint8)
        stream.add(lambda: np.copyto(self.at(target, source.nbytes), source))

    def _download(self, dest: np.ndarray, src: DeviceAllocation, stream: Stream) -> None:
        self.current("memcpy_dtoh_async")
        self._pinned(dest)
        self.record(f"download {dest.nbytes}")
        target, source = dest.reshape(-1).view(np.uint8), int(src)
        stream.add(lambda: np.copyto(target, self.at(source, target.nbytes)))
