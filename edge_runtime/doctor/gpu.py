"""The GPU and what is needed to run networks on it."""

from __future__ import annotations

import json
import re

from edge_runtime.doctor.board import is_jetson
from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine

_QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
_DRIVER = re.compile(r"Module\D{0,40}(\d{2,4}\.\d{1,4}(?:\.\d{1,4})?)")


def _smi(machine: Machine) -> list[str]:
    """Name, driver and compute capability of the first GPU; empty where nvidia-smi has none."""
    lines = (machine.ask(_QUERY) or "").splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return values if len(values) == 3 else []


def _present(machine: Machine) -> bool:
    patterns = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu/igpu0")
    return any(machine.glob(pattern) for pattern in patterns) or bool(_smi(machine))


@probe("gpu", "GPU")
def gpu(machine: Machine) -> Answer:
    """An NVIDIA GPU, and whether this user may use it."""
    values = _smi(machine)
    nodes = [*machine.glob("/dev/nvhost-gpu"), *machine.glob("/dev/nvidia0")]
    if blocked := [node for node in nodes if not machine.can_use(node)]:
        return Answer.problem(
            f"no permission for {', '.join(blocked)}",
            "sudo usermod -aG video,render $USER, log in again; in a container: --group-add video",
        )
    if values:
        return Answer.ok(f"{values[0]}, compute capability {values[2]}"[:100])
    if nodes or _present(machine):
        return Answer.ok("integrated")
    if is_jetson(machine):
        return Answer.problem("absent", "in a container: docker run --runtime nvidia")
    return Answer.absent("networks run on the CPU")


@probe("gpu", "driver")
def driver(machine: Machine) -> Answer:
    """Version of NVIDIA's kernel driver."""
    if values := _smi(machine):
        return Answer.ok(values[1][:40])
    if match := _DRIVER.search(machine.read("/proc/driver/nvidia/version") or ""):
        return Answer.ok(match[1])
    if is_jetson(machine) and _present(machine):
        return Answer.ok("nvgpu, of the L4T release")
    return Answer.absent()


@probe("gpu", "CUDA")
def cuda(machine: Machine) -> Answer:
    """The CUDA toolkit or runtime."""
    try:
        values = json.loads(machine.read("/usr/local/cuda/version.json") or "")
        return Answer.ok(str(values["cuda"]["version"])[:40])
    except (ValueError, KeyError, TypeError):
        pass
    if folders := machine.glob("/usr/local/cuda-*.*"):
        return Answer.ok(folders[-1].rpartition("-")[2][:40])
    if machine.version("tensorrt"):
        return Answer.absent("no toolkit; TensorRT brings the libraries that it needs")
    return _needed_on_a_gpu(machine, "install CUDA; on a Jetson: sudo apt install nvidia-jetpack")


@probe("gpu", "TensorRT")
def tensorrt(machine: Machine) -> Answer:
    """TensorRT's Python bindings."""
    if version := machine.version("tensorrt"):
        return Answer.ok(version)
    remedy = "on a Jetson: sudo apt install python3-libnvinfer, and a virtual environment that sees"
    return _needed_on_a_gpu(machine, f"{remedy} the system's packages (--system-site-packages)")


@probe("gpu", "pycuda")
def pycuda(machine: Machine) -> Answer:
    """How TensorRT's memory is handled."""
    if version := machine.version("pycuda"):
        return Answer.ok(version)
    return _needed_on_a_gpu(machine, "pip install 'fieldsight[jetson]'; needs nvcc on the path")


def _needed_on_a_gpu(machine: Machine, remedy: str) -> Answer:
    """A problem where there is a GPU to use, else as it should be."""
    if _present(machine) or is_jetson(machine):
        return Answer.problem("absent", remedy)
    return Answer.absent("needed for NVIDIA GPUs only")


@probe("gpu", "ONNX Runtime")
def onnxruntime(machine: Machine) -> Answer:
    """Where ONNX Runtime can run."""
    if not machine.has_module("onnxruntime"):
        return Answer.absent()
    import onnxruntime

    return Answer.ok(", ".join(onnxruntime.get_available_providers()))
