"""CUDA through pycuda, cut down to what an engine needs: one context, one stream, pinned memory."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from edge_runtime.engines.cuda_graph import CudaGraph
from edge_runtime.errors import FieldsightError, InputError

if TYPE_CHECKING:
    from pycuda.driver import Context, DeviceAllocation, HostAllocation, Stream

log = logging.getLogger(__name__)
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work elsewhere on the default stream does not hold ours


# Pages in use, each with what watches its array. `weakref.finalize` would stop watching before
# engines that are still open when Python ends have been closed.
_PAGES: dict[int, tuple[weakref.ref[np.ndarray], HostAllocation]] = {}


class GpuError(FieldsightError):
    """The GPU, its driver or its memory failed while working."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that the CPU and the GPU share or mirror.

    Attributes:
        host: Page-locked array.
        address: Where the GPU finds it.
        allocation: The GPU's own copy; None if the GPU reads and writes `host` itself.
    """

    host: np.ndarray
    address: int
    allocation: DeviceAllocation | None


class Launch(Protocol):
    """Recorded work that can be started again."""

    def launch(self) -> None:
        """Start the work on the stream that it was recorded on."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class Cuda(Protocol):
    """What an engine needs of CUDA. Every method but `active` and `close` wants `active`."""

    name: str
    capability: tuple[int, int]
    integrated: bool
    stream: int

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Make the GPU's context current in the calling thread, whichever it is."""
        ...

    def buffer(self, shape: Sequence[int], dtype: str, mapped: bool) -> Buffer:
        """Zeroed memory on both sides; one and the same if `mapped`."""
        ...

    def upload(self, buffer: Buffer) -> None:
        """Queue a copy to the GPU; nothing to do for shared memory."""
        ...

    def download(self, buffer: Buffer) -> None:
        """Queue a copy from the GPU; nothing to do for shared memory."""
        ...

    def synchronize(self) -> None:
        """Wait until everything queued is done."""
        ...

    def settle(self) -> None:
        """Wait like `synchronize`, whatever became of the work: nothing is queued any more."""
        ...

    def capture(self, work: Callable[[], None]) -> Launch:
        """Record what `work` queues, without running it, to start it later in one call."""
        ...

    def free_mib(self) -> int:
        """Free memory of the GPU."""
        ...

    def close(self) -> None:
        """Free the stream and the GPU's memory, and leave the context."""
        ...


def load_driver():  # unannotated, so that type checkers see the module itself
    """`pycuda.driver`, initialised, with at least one GPU that answers.

    Raises:
        InputError: Says what is missing and what to do.
    """
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise InputError(
            f"pycuda cannot be imported ({error}); install it with pip install "
            "'fieldsight[jetson]' on a machine with NVIDIA's driver"
        ) from None
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise InputError(f"no GPU answers: {error}; {advice(str(error))}") from None
    if count == 0:
        raise InputError("no GPU answers: CUDA counts 0 devices; see CUDA_VISIBLE_DEVICES")
    return driver


class PycudaDevice:
    """The first GPU that CUDA shows, with its primary context.

    The primary context is the one that the CUDA runtime, and so torch, uses: sharing it costs no
    second context's memory. It is current in a thread only inside `active`.
    """

    def __init__(self) -> None:
        self._driver = load_driver()
        device = self._driver.Device(0)
        attribute = self._driver.device_attribute
        self.name = device.name()
        self.capability = device.compute_capability()
        self.integrated = bool(device.get_attribute(attribute.INTEGRATED)) and bool(
            device.get_attribute(attribute.CAN_MAP_HOST_MEMORY)
        )
        self._pinned = 0
        self._closed = False
        self._lock = threading.RLock()  # arrays may die, and so be freed, in any thread
        self._allocations: list[DeviceAllocation] = []
        try:
            self._context: Context | None = device.retain_primary_context()
        except self._driver.Error as error:
            raise GpuError(f"{self.name}: no context: {error}; {advice(str(error))}") from None
        try:
            with self.active():
                self._stream: Stream | None = self._driver.Stream(_NON_BLOCKING)
                self.stream = self._stream.handle
        except BaseException:
            self._closed = True
            self._leave()
            raise

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current in this thread, and what was current before again at the end."""
        context = self._context
        if context is None:
            raise GpuError(f"{self.name}: the engine is closed; open it again")
        try:
            context.push()
            try:
                yield
            finally:
                context.pop()
        except self._driver.Error as error:
            raise GpuError(f"{self.name}: {error}; {advice(str(error))}") from None

    def buffer(self, shape: Sequence[int], dtype: str, mapped: bool) -> Buffer:
        """Zeroed page-locked memory, and memory of the GPU's own unless `mapped`.

        The page-locked pages live as long as the array or a view of it does, beyond `close` if
        need be: whoever still holds an array may touch it.
        """
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        host = self._driver.pagelocked_empty(tuple(shape), np.dtype(dtype), mem_flags=flags)
        pages = cast("HostAllocation", host.base)
        self._pinned += 1
        watch = weakref.ref(host, self._free_pages)
        _PAGES[id(watch)] = watch, pages
        host[...] = 0
        if mapped:
            return Buffer(host, int(pages.get_device_pointer()), None)
        allocation = self._driver.mem_alloc(max(host.nbytes, 1))
        self._allocations.append(allocation)
        return Buffer(host, int(allocation), allocation)

    def upload(self, buffer: Buffer) -> None:
        """Queue a copy to the GPU; nothing to do for shared memory."""
        if buffer.allocation is not None:
            self._driver.memcpy_htod_async(buffer.allocation, buffer.host, self._stream)

    def download(self, buffer: Buffer) -> None:
        """Queue a copy from the GPU; nothing to do for shared memory."""
        if buffer.allocation is not None:
            self._driver.memcpy_dtoh_async(buffer.host, buffer.allocation, self._stream)

    def synchronize(self) -> None:
        """Wait until everything queued is done."""
        assert self._stream is not None
        self._stream.synchronize()

    def settle(self) -> None:
        """Wait like `synchronize`, but let a failure of the work pass."""
        with contextlib.suppress(self._driver.Error):
            self.synchronize()

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Record what `work` queues in a CUDA graph.

        Raises:
            CaptureError: Something in `work` cannot be recorded; the stream is usable as before.
        """
        return CudaGraph(self.stream, work)

    def free_mib(self) -> int:
        """Free memory of the GPU, which an integrated one shares with the CPU."""
        return self._driver.mem_get_info()[0] >> 20

    def close(self) -> None:
        """Free the stream and the GPU's memory; leave the context once no pages are in use."""
        if self._closed:
            return
        self._closed = True
        with self.active():
            self.settle()
            while self._allocations:
                self._allocations.pop().free()
            self._stream = None
        self._leave()

    def _free_pages(self, watch: weakref.ref[np.ndarray]) -> None:
        _, pages = _PAGES.pop(id(watch))
        with self._lock:
            try:
                with self.active():
                    pages.free()
            except FieldsightError as error:  # the pages may be gone with a context that failed
                log.warning("page-locked memory was not freed: %s", error)
            self._pinned -= 1
        self._leave()

    def _leave(self) -> None:
        """Release the primary context, once, when closed and no page-locked array is left.

        In a thread of its own: pycuda takes a released context off its own stack but not off the
        driver's, and that of a thread ends with it.
        """
        with self._lock:
            if not self._closed or self._pinned or self._context is None:
                return
            context, self._context = self._context, None

        def release() -> None:
            context.push()
            context.detach()

        thread = threading.Thread(target=release, name="leave-cuda")
        try:
            if sys.is_finalizing():  # a thread would never get its turn
                raise RuntimeError
            thread.start()
        except RuntimeError:  # Python ends and starts no more threads; this one ends, too
            release()
        else:
            thread.join()


def advice(message: str) -> str:
    """What to do about an error of CUDA or TensorRT, by what its message says."""
    text = message.lower()
    return next((advice for words, advice in _ADVICE if any(word in text for word in words)), _ELSE)


_ELSE = "look at dmesg and run fieldsight-run doctor"
_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("out of memory", "outofmemory", "memory allocation", "mem_alloc"),
        "out of memory: close other programs, or build with a smaller --workspace",
    ),
    (
        ("driver version is insufficient", "unsupported display driver", "with error: 35", "803"),
        "the driver is too old for this CUDA: update JetPack or the driver",
    ),
    (
        ("incompatible device", "compute capability", "no kernel image", "sm version"),
        "the plan is for another GPU: build it on this machine with fieldsight-run build --force",
    ),
    (
        ("version tag", "serialized engine version", "serialization", "magic", "deserializ"),
        "the plan is of another TensorRT or damaged: run fieldsight-run build --force",
    ),
    (
        ("no cuda-capable device", "no device", "with error: 100"),
        "check that the GPU is visible to this process (CUDA_VISIBLE_DEVICES, --runtime nvidia)",
    ),
)
