"""The driver's calls for CUDA graphs, which capture work on a stream and launch it again."""

from __future__ import annotations

from typing import Any

from fakes.cuda import FakeCuda


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
