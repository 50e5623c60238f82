"""What `pycuda.driver` makes: contexts, memory and streams, and the errors it raises.

What a real driver would not survive raises; what it would only suffer, such as memory freed
without its context, is noted in the `faults` of the fake.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fakes.cuda import FakeCuda

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
