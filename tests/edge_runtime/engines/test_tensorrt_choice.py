"""When TensorRT is chosen, and what is said where it cannot be."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from fakes import cuda
from fakes.machine import Machine

from edge_runtime.bundle import Bundle
from edge_runtime.engines import open_engine
from edge_runtime.errors import InputError


def test_auto_takes_tensorrt_where_it_can_and_says_why(
    machine: Machine, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = open_engine(tiny_bundle, threads=2)
    assert engine.name.startswith("tensorrt")
    assert "engine: tensorrt, because it works here" in caplog.text
    assert "TensorRT does not use the 2 asked for" in caplog.text
    engine.close()


def _no_tensorrt(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "tensorrt", None)


def _stubs_only(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.delattr(machine.trt.module, "Logger")


def _old_tensorrt(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine.trt.module, "__version__", "8.6.2")


def _no_pycuda(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "pycuda.driver", None)
    patch.delattr(sys.modules["pycuda"], "driver")


def _no_gpu(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    machine.cuda.devices = 0


def _no_driver(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    text = "cuInit failed: no CUDA-capable device is detected"
    machine.cuda.failures["init"] = cuda.Error, text


def _old_driver(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    text = "cuInit failed: system has unsupported display driver / cuda driver combination"
    machine.cuda.failures["init"] = cuda.Error, text


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_no_tensorrt, r"tensorrt cannot be imported .*JetPack.*--system-site-packages"),
        (_stubs_only, r"type stubs only; install TensorRT itself"),
        (_old_tensorrt, r"TensorRT 8\.6\.2 is too old; 10\.3"),
        (_no_pycuda, r"pycuda cannot be imported .*fieldsight\[jetson\]"),
        (_no_gpu, r"no GPU answers: CUDA counts 0 devices"),
        (_no_driver, r"no GPU answers: cuInit failed.*--runtime nvidia"),
        (_old_driver, r"driver is too old for this CUDA: update JetPack"),
    ],
)
def test_without_tensorrt_the_choice_is_refused_and_auto_falls_to_the_cpu(
    machine: Machine,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Any,
    says: str,
) -> None:
    spoil(machine, monkeypatch)
    with pytest.raises(InputError, match=says):
        open_engine(tiny_bundle, "tensorrt")
    caplog.set_level(logging.INFO)
    engine = open_engine(tiny_bundle)
    assert engine.name == "onnxruntime-cpu-fp32"
    assert "engine: onnxruntime, because tensorrt is not available" in caplog.text
    assert machine.cuda.retained == 0
