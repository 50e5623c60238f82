"""CUDA without a GPU, as `pycuda.driver` shows it, and the driver's calls for graphs.

Host memory stands for the GPU's, under addresses of its own, so that a host address where the
GPU's belongs is found out. Work on a stream is queued and runs when the stream is waited for, so a
missing wait is found out. What a real driver would not survive raises; what it would only suffer,
such as memory freed without its context, is noted in `faults`.
"""

from __future__ import annotations

import enum
import itertools
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Work = Callable[[], None]


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class DeviceAttribute(enum.Enum):
    INTEGRATED = 18
    CAN_MAP_HOST_MEMORY = 19


class HostAllocFlags:
    PORTABLE = 1
    DEVICEMAP = 2
    WRITECOMBINED = 4


class Device:
    """What `pycuda.driver.Device` gives; `cuda` is set in a subclass made for each fake."""

    cuda: FakeCuda

    def __init__(self, number: int) -> None:
        if not self.cuda.initialised:
            raise LogicError("cuDeviceGet failed: initialization error")
        if number >= self.cuda.devices:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    @classmethod
    def count(cls) -> int:
        return cls.cuda.devices

    def name(self) -> str:
        return self.cuda.name

    def compute_capability(self) -> tuple[int, int]:
        return self.cuda.capability

    def get_attribute(self, attribute: DeviceAttribute) -> int:
        values = {"INTEGRATED": self.cuda.integrated, "CAN_MAP_HOST_MEMORY": True}
        return int(values[attribute.name])

    def retain_primary_context(self) -> Context:
        self.cuda.record("retain")  # which may fail
        self.cuda.retained += 1
        return Context(self.cuda)


class Context:
    """The primary context. pycuda keeps a stack for each thread beside the driver's own."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.thread = threading.get_ident()
        self.valid = True

    def push(self) -> None:
        stacks = self.cuda.stacks
        if not self.valid:
            raise LogicError("cuCtxPushCurrent failed: context is destroyed")
        if stacks.pycuda:
            stacks.driver.pop()
        stacks.driver.append(self)
        stacks.pycuda.append(self)
        self.cuda.record("push")

    def pop(self) -> None:
        stacks = self.cuda.stacks
        if not stacks.pycuda:
            raise LogicError("context::pop failed: cannot pop non-current context")
        self.cuda.record("pop")
        stacks.driver.pop()
        stacks.pycuda.pop()
        if stacks.pycuda:
            stacks.driver.append(stacks.pycuda[-1])

    def detach(self) -> None:
        if not self.valid:
            raise LogicError("context::detach failed: cannot detach from invalid context")
        stacks = self.cuda.stacks
        if stacks.pycuda and stacks.pycuda[-1] is self:
            stacks.pycuda.pop()  # but it stays on the driver's stack
        elif self.thread == threading.get_ident():
            stacks.driver.append(self)  # as pycuda does: pushed, and not popped
        else:
            self.cuda.faults.append("context detached from another thread: never released")
            return
        self.valid = False
        self.cuda.record("release")
        self.cuda.retained -= 1


class Owned:
    """Something that belongs to a context and must be freed while it is current."""

    def __init__(self, cuda: FakeCuda, kind: str) -> None:
        self.cuda, self.kind = cuda, kind
        self.context = cuda.current(kind)
        self.alive = True
        cuda.live[id(self)] = kind

    def end(self) -> None:
        self.cuda.record(f"free {self.kind}")
        if not self.alive:
            raise LogicError(f"{self.kind} freed twice")
        if not self.context.valid:
            self.cuda.faults.append(f"{self.kind} freed after its context was released")
        elif self.context not in self.cuda.stacks.pycuda[-1:]:
            self.cuda.faults.append(f"{self.kind} freed while its context was not current")
        self.alive = False
        self.cuda.live.pop(id(self), None)


class DeviceAllocation(Owned):
    def __init__(self, cuda: FakeCuda, size: int) -> None:
        super().__init__(cuda, "device memory")
        self.memory = np.full(size, 0xCD, np.uint8)
        self.address = cuda.place(self, self.memory)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.end()
        self.memory[:] = 0xDD


class HostAllocation(bytearray):
    """Page-locked memory; the base of the array that `pagelocked_empty` gives."""

    def own(self, cuda: FakeCuda, flags: int) -> None:
        self.flags = flags
        self.owned = Owned(cuda, "page-locked memory")
        self.address = cuda.place(self.owned, np.frombuffer(self, np.uint8))

    def get_device_pointer(self) -> int:
        if not self.flags & HostAllocFlags.DEVICEMAP:
            raise LogicError("cuMemHostGetDevicePointer failed: invalid argument")
        return self.address

    def free(self) -> None:
        self.owned.end()


class Stream(Owned):
    """Queued work. `recording` holds what is captured instead of queued."""

    alive = False

    def __init__(self, cuda: FakeCuda, flags: int = 0) -> None:
        cuda.record("stream")
        super().__init__(cuda, "stream")
        self.flags = flags
        self.handle = next(cuda.numbers)
        self.queue: list[Work] = []
        self.recording: list[Work] | None = None
        cuda.streams[self.handle] = self

    def add(self, work: Work) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def synchronize(self) -> None:
        self.cuda.current("synchronize")
        self.cuda.record("synchronize")
        if self.recording is not None:
            raise LogicError("cuStreamSynchronize failed: operation not permitted while capturing")
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def __del__(self) -> None:
        if self.alive:
            self.end()


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


class FakeLibrary:
    """The calls of `libcuda.so.1` that pycuda does not have."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def _answer(self, name: str) -> int:
        self.cuda.record(name)
        return self.cuda.capture_codes.get(name, 0)

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        if code := self._answer("begin capture"):
            return code
        assert mode == 1, "other threads must be free to use CUDA during the capture"
        self.cuda.streams[stream].recording = []
        return 0

    def cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        code = self._answer("end capture")
        recorded = self.cuda.streams[stream].recording
        self.cuda.streams[stream].recording = None
        if code or recorded is None:
            return code or 1
        graph._obj.value = next(self.cuda.numbers)
        self.cuda.graphs[graph._obj.value] = recorded
        return 0

    def cuGraphInstantiateWithFlags(self, launchable: Any, graph: Any, flags: int) -> int:
        if code := self._answer("instantiate"):
            return code
        launchable._obj.value = next(self.cuda.numbers)
        self.cuda.launchable[launchable._obj.value] = self.cuda.graphs[graph.value]
        return 0

    def cuGraphLaunch(self, launchable: Any, stream: int) -> int:
        self.cuda.current("cuGraphLaunch")
        if code := self._answer("launch"):
            return code
        for work in self.cuda.launchable[launchable.value]:
            self.cuda.streams[stream].add(work)
        return 0

    def cuGraphExecDestroy(self, launchable: Any) -> int:
        del self.cuda.launchable[launchable.value]
        return self._answer("destroy launchable")

    def cuGraphDestroy(self, graph: Any) -> int:
        del self.cuda.graphs[graph.value]
        return self._answer("destroy graph")
