"""TensorRT on an NVIDIA GPU: page-locked memory, one stream, nothing allocated per frame."""

from __future__ import annotations

import atexit
import contextlib
import logging
import traceback
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle import Bundle
from edge_runtime.engines import register_engine
from edge_runtime.engines.building import create_runtime, load_tensorrt, logger, version
from edge_runtime.engines.cuda import Buffer, Cuda, GpuError, Launch, load_driver
from edge_runtime.engines.cuda_graph import CaptureError
from edge_runtime.errors import BundleError, FieldsightError, InputError
from edge_runtime.manifest import TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)
_FRAME = "image"  # changes with every frame; other inputs are compared and rarely sent
_TYPES = {
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
}


class PlanError(GpuError):
    """TensorRT does not take a plan: damaged, or of another GPU or TensorRT."""


@dataclass(slots=True)
class _Kept:
    """An input that stays on the GPU: its memory, and what of it was sent last, bit by bit."""

    buffer: Buffer
    bits: np.ndarray
    sent: np.ndarray
    differs: np.ndarray
    fresh: bool = False

    @classmethod
    def of(cls, buffer: Buffer) -> _Kept:
        bits = buffer.host.reshape(-1).view(np.uint8)
        return cls(buffer, bits, np.zeros_like(bits), np.zeros(bits.shape, np.bool_))

    def changed(self) -> bool:
        """Whether the host's values differ from those sent last; remembers them if so."""
        if self.fresh and not np.not_equal(self.bits, self.sent, out=self.differs).any():
            return False
        np.copyto(self.sent, self.bits)
        self.fresh = True
        return True


class TensorRTEngine:
    """A plan on the GPU. Calls may come from any thread, one at a time.

    Outputs, and the image where the GPU shares the CPU's memory (Jetson), are read and written by
    the GPU in place; elsewhere they are copied asynchronously. Other inputs, such as the adapter,
    stay on the GPU and are sent again only when their content changed.

    Args:
        cuda: The GPU; `close` closes it, too.
        plan: A plan that may be trusted: TensorRT runs what it says.
        precision: Of the network, for the engine's name.
        source: Name of the plan, for messages.
        dla_core: The deep learning accelerator that the plan was built for.
        cuda_graph: Record each call's work in a CUDA graph and replay it. Where that cannot be,
            a warning says why and the work is queued step by step, with the same results;
            `uses_cuda_graph` tells.

    Raises:
        PlanError: TensorRT does not take the plan.
        GpuError: Memory is short, or the GPU failed. `cuda` is left open, as in every error here.
        BundleError: The network has a shape or type that the runtime cannot serve.
    """

    _open = False

    def __init__(
        self,
        cuda: Cuda,
        plan: bytes,
        precision: str,
        source: str = "the plan",
        dla_core: int | None = None,
        cuda_graph: bool = True,
    ) -> None:
        major, minor = version()
        capability = "".join(map(str, cuda.capability))
        self.name = f"tensorrt-{major}.{minor}-sm{capability}-{precision}"
        self._cuda = cuda
        self._logger = logger()
        self._graph: Launch | None = None
        self._inputs: dict[str, Buffer] = {}
        self._outputs: dict[str, Buffer] = {}
        self._hosts: dict[str, np.ndarray] = {}  # of the outputs
        self._kept: list[_Kept] = []
        self._context: trt.IExecutionContext | None = None
        self._engine: trt.ICudaEngine | None = None
        try:
            with cuda.active():
                self._load(plan, source, dla_core)
                self._bind(source)
                self._warm_up(cuda_graph)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold what must be freed here
            self._free()
            raise
        self._open = True
        _OPEN.add(self)

    def __del__(self) -> None:
        if self._open:  # dropped without `close`: still leave the GPU in order
            with contextlib.suppress(FieldsightError):
                self.close()

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether a call is one launch of a recorded CUDA graph."""
        return self._graph is not None

    def input_buffer(self, name: str) -> np.ndarray:
        """Page-locked memory of input `name`, as long as someone holds it."""
        return self._inputs[name].host

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run the network; the outputs are overwritten by the next call.

        Raises:
            InputError: An input has the wrong shape or type.
            GpuError, CaptureError: The GPU failed; open the engine again.
        """
        if self._context is None:
            raise GpuError(f"{self.name} is closed; open it again")
        for name, buffer in self._inputs.items():
            given = inputs[name]
            host = buffer.host
            if given is not host:
                if given.shape != host.shape or given.dtype != host.dtype:
                    raise InputError(
                        f"input '{name}' is {given.dtype} {given.shape}, "
                        f"expected {host.dtype} {host.shape}"
                    )
                np.copyto(host, given)
        with self._cuda.active():
            self._send_kept()
            if self._graph is not None:
                self._graph.launch()
            else:
                self._queue()
            self._cuda.synchronize()
        return self._hosts

    def close(self) -> None:
        """Free the network and its memory on the GPU; the engine cannot be used afterwards."""
        self._open = False
        _OPEN.discard(self)
        self._free()
        self._cuda.close()

    def _free(self) -> None:
        """Let go of everything, in the order of need; pages that others hold stay."""
        if self._engine is not None:
            with self._cuda.active():
                self._cuda.settle()
                if self._graph is not None:
                    self._graph.close()
                self._graph = self._context = None
                self._engine = None
        self._kept.clear()
        for arrays in (self._hosts, self._inputs, self._outputs):
            arrays.clear()

    def _load(self, plan: bytes, source: str, dla_core: int | None) -> None:
        self._logger.problems.clear()
        runtime = create_runtime()
        if dla_core is not None:
            runtime.DLA_core = dla_core
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise PlanError(f"{source}: TensorRT cannot load it: {self._logger.explain()}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            need = self._engine.device_memory_size_v2 >> 20
            raise GpuError(
                f"{source}: no execution context; it needs {need} MiB and the GPU has "
                f"{self._cuda.free_mib()} MiB free: {self._logger.explain()}"
            )

    def _bind(self, source: str) -> None:
        import tensorrt as trt

        assert self._engine is not None and self._context is not None
        inputs: dict[str, TensorSpec] = {}
        outputs: dict[str, TensorSpec] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            spec = _spec(self._engine, name, source)
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            kept = is_input and name != _FRAME
            mapped = self._cuda.integrated and not kept
            buffer = self._cuda.buffer(spec.shape, spec.dtype, mapped)
            specs, buffers = (inputs, self._inputs) if is_input else (outputs, self._outputs)
            specs[name], buffers[name] = spec, buffer
            if kept:
                self._kept.append(_Kept.of(buffer))
            if not self._context.set_tensor_address(name, buffer.address):
                raise GpuError(f"{source}: tensor '{name}': {self._logger.explain()}")
        self.inputs: Mapping[str, TensorSpec] = inputs
        self.outputs: Mapping[str, TensorSpec] = outputs
        self._hosts = {name: buffer.host for name, buffer in self._outputs.items()}

    def _warm_up(self, cuda_graph: bool) -> None:
        """Run once, which makes TensorRT allocate what it needs, then record the graph."""
        self._send_kept()
        self._queue()
        self._cuda.synchronize()
        if not cuda_graph:
            return
        try:
            self._graph = self._cuda.capture(self._queue)
        except CaptureError as error:
            log.warning("%s runs without a CUDA graph: %s", self.name, str(error))
            self._queue()  # the stream must still work
            self._cuda.synchronize()

    def _send_kept(self) -> None:
        for kept in self._kept:
            if kept.changed():
                self._cuda.upload(kept.buffer)

    def _queue(self) -> None:
        """Queue one inference, with the copies that every frame needs."""
        for name, buffer in self._inputs.items():
            if name == _FRAME:
                self._cuda.upload(buffer)
        assert self._context is not None
        if not self._context.execute_async_v3(self._cuda.stream):
            raise GpuError(f"{self.name}: inference failed: {self._logger.explain()}")
        for buffer in self._outputs.values():
            self._cuda.download(buffer)


_OPEN: weakref.WeakSet[TensorRTEngine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what nobody closed while CUDA still answers; later its libraries complain."""
    for engine in list(_OPEN):
        with contextlib.suppress(FieldsightError):
            engine.close()


def _spec(engine: trt.ICudaEngine, name: str, source: str) -> TensorSpec:
    shape = [int(size) for size in engine.get_tensor_shape(name)]
    dtype = engine.get_tensor_dtype(name).name
    if dtype not in _TYPES or any(size < 0 for size in shape):
        raise BundleError(
            f"{source}: tensor '{name}' is {dtype} {shape}; expected a static shape and one of "
            f"{', '.join(_TYPES)}; export the bundle again"
        )
    return TensorSpec(name=name, dtype=_TYPES[dtype], shape=shape)


def why_unavailable() -> str | None:
    """Why TensorRT cannot be used here; None if it imports and a GPU answers."""
    try:
        load_tensorrt()
        load_driver()
    except InputError as error:
        return str(error)
    return None


@register_engine("tensorrt", why_unavailable)
def open_tensorrt(bundle: Bundle, precision: str, threads: int | None) -> TensorRTEngine:
    """Open the bundle's network under TensorRT: from the plan cache, or built now."""
    from edge_runtime.engines.preparing import prepare

    if threads is not None:
        log.warning("threads are of the CPU; TensorRT does not use the %d asked for", threads)
    return prepare(bundle, precision).engine
