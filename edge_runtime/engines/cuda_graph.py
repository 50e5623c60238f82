"""CUDA graphs through the driver itself: pycuda has no call for them.

A graph replays a recorded sequence of copies and kernels in one call, which spares the CPU the
launch of each (CUDA driver API, "Graph Management" and "Stream Management").
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from edge_runtime.errors import FieldsightError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may use CUDA meanwhile
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (ctypes.c_void_p, ctypes.c_int),
    "cuStreamEndCapture": (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)),
    "cuGraphInstantiateWithFlags": (
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_void_p,
        ctypes.c_ulonglong,
    ),
    "cuGraphLaunch": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphExecDestroy": (ctypes.c_void_p,),
    "cuGraphDestroy": (ctypes.c_void_p,),
}


class CaptureError(FieldsightError):
    """Work could not be recorded in a CUDA graph."""


@functools.cache
def load_library() -> Any:
    """NVIDIA's driver library with the calls for graphs declared.

    Raises:
        CaptureError: It is absent or older than CUDA 11.4.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (OSError, AttributeError) as error:
        raise CaptureError(f"the driver has no CUDA graphs: {error}") from None
    return library


class CudaGraph:
    """What `work` queues on a stream, recorded once.

    Args:
        stream: The stream's handle; its context is current.
        work: Queues copies and kernels on the stream. It is called once and runs nothing.

    Raises:
        CaptureError: Something in it cannot be recorded; the stream is usable as before.
    """

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self._library = load_library()
        self._stream = stream
        self._exec = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        _check("begin", self._library.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL))
        failure = None
        try:
            work()
        except Exception as error:
            failure = str(error)
        ended = self._library.cuStreamEndCapture(stream, ctypes.byref(graph))
        try:
            if failure is not None:
                raise CaptureError(f"CUDA graph: {failure}")
            _check("end", ended)
            made = self._library.cuGraphInstantiateWithFlags(ctypes.byref(self._exec), graph, 0)
            _check("instantiate", made)
        finally:
            if graph.value:
                self._library.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Start the recorded work on its stream."""
        code = self._library.cuGraphLaunch(self._exec, self._stream)
        if code:
            _check("launch", code)

    def close(self) -> None:
        """Free the graph."""
        if self._exec.value:
            self._library.cuGraphExecDestroy(self._exec)
            self._exec = ctypes.c_void_p()


def _check(step: str, code: int) -> None:
    if code:
        raise CaptureError(f"CUDA graph: {step} failed with CUDA error {code}")
