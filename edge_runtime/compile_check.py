"""Would TensorRT take a bundle's networks? TensorRT for RTX parses and builds them, without a GPU.

It shares TensorRT's ONNX parser and builder, and its networks are strongly typed: each tensor has
the type that the file gives it. A build proves that a file can be parsed and compiled; it does not
run it, and other versions of TensorRT may differ.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError

# A bundle's files that a TensorRT gets, and the precision that each is for.
FILES = {"model.onnx": "fp32", "model.fp16.onnx": "fp16", "model.int8.onnx": "int8"}
TIME_LIMIT_S = 300.0
_MEMORY_LIMIT = 16 << 30  # bytes; a crafted file may ask for any amount
_COMPUTE = ("CONVOLUTION", "DECONVOLUTION", "EINSUM", "MATRIX_MULTIPLY")
_NAMES = {"FLOAT": "fp32", "HALF": "fp16"}  # other types go by their own names, in lower case
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class CompileReport:
    """What became of one file.

    Attributes:
        file: Name within the bundle.
        precision: "fp32", "fp16" or "int8", what the file is for.
        ok: Whether it was parsed and built.
        seconds: Time of both.
        layers: Layers of the parsed network, constants included.
        layers_by_precision: Their number by type of result ("fp32", "int64", ...); convolutions
            and products whose input and weights are dequantised INT8 count as "int8".
        float_layers: Convolutions and products of an INT8 or FP16 file that run in a higher
            precision than the file's: in an INT8 file, those not fed by quantise/dequantise pairs.
        problems: What the parser and the builder refused, with node and operator.
    """

    file: str
    precision: str
    ok: bool
    seconds: float
    layers: int = 0
    layers_by_precision: dict[str, int] = field(default_factory=dict)
    float_layers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_bundle(
    bundle: Bundle, capability: tuple[int, int] = (8, 6), time_limit_s: float = TIME_LIMIT_S
) -> list[CompileReport]:
    """Parse and build every network of a bundle that is for TensorRT.

    Each file is built in a process of its own, which a malformed file may bring down.

    Args:
        bundle: An opened bundle.
        capability: Compute capability to build for. Jetson Orin has 8.7; 8.6 is the nearest that
            TensorRT for RTX knows.
        time_limit_s: Seconds that one file may take.

    Returns:
        A report a file, in the order of `FILES`.

    Raises:
        InputError: TensorRT for RTX is not installed, or does not know `capability`.
    """
    return [
        check_file(bundle.file(name), precision, capability, time_limit_s)
        for name, precision in FILES.items()
        if bundle.has(name)
    ]


def check_file(
    path: Path,
    precision: str,
    capability: tuple[int, int] = (8, 6),
    time_limit_s: float = TIME_LIMIT_S,
) -> CompileReport:
    """Parse and build one ONNX file; see `check_bundle`."""
    _require_tensorrt(capability)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [str(path.resolve()), precision, _capability_name(capability), str(result)]
        places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "edge_runtime.compile_check", *words],
                cwd=folder,  # where nothing lies that a file could refer to
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=time_limit_s,
            )
            trouble = _trouble(done)
        except subprocess.TimeoutExpired:
            trouble = f"not built within {time_limit_s:g} s; stopped"
        seconds = time.monotonic() - start
        if trouble is None:
            return CompileReport(file=path.name, **json.loads(result.read_text()))
    return CompileReport(path.name, precision, False, seconds, problems=[trouble])


def _require_tensorrt(capability: tuple[int, int]) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise InputError(
            "the compile check needs TensorRT for RTX, which is not installed here (no GPU "
            "needed): pip install 'fieldsight[compile-check]'"
        )
    import tensorrt_rtx as trt

    known = sorted(n for n in dir(trt.ComputeCapability) if n.startswith("SM"))
    if _capability_name(capability) not in known:
        raise InputError(
            f"compute capability {'.'.join(map(str, capability))} is unknown to TensorRT for RTX "
            f"{trt.__version__}; it knows {', '.join(known)} (SM86 is 8.6)"
        )


def _capability_name(capability: tuple[int, int]) -> str:
    return "SM" + "".join(map(str, capability))


def _trouble(done: subprocess.CompletedProcess[bytes]) -> str | None:
    """How the building process failed, or None."""
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    last = f": {said[-1]:.300}" if said else ""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"TensorRT crashed on it ({name}){last}; the file is malformed or too large"
    return f"TensorRT could not be run on it{last}"


def _build(path: Path, precision: str, capability: str) -> dict[str, Any]:
    """Fields of a `CompileReport` but for its file; runs in the process that may crash."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

    start = time.monotonic()
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(path.read_bytes())
    if not parsed:
        found = [_explain(parser.get_error(index)) for index in range(parser.num_errors)]
        return _fields(precision, False, start, found or log.errors or ["the parser refused it"])
    if not network.num_outputs:
        return _fields(precision, False, start, ["holds no network: no output; export it again"])
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    plan = builder.build_serialized_network(network, config)
    problems = log.errors if plan is not None else log.errors or ["the builder refused it"]
    layers = _layers(network, precision)
    return _fields(precision, plan is not None, start, problems) | layers


def _explain(error: Any) -> str:
    """A parser's error with its node; what CUDA says where there is no GPU is left out."""
    lines = [line for line in error.desc().splitlines() if "catchCudaError" not in line]
    text = " ".join(lines) or "refused"
    if not error.node_name() and not error.node_operator():
        return text
    return f"node '{error.node_name()}' ({error.node_operator()}): {text}"


def _fields(precision: str, ok: bool, start: float, problems: list[str]) -> dict[str, Any]:
    return {
        "precision": precision,
        "ok": ok,
        "seconds": time.monotonic() - start,
        "problems": list(dict.fromkeys(problems))[:_MOST_PROBLEMS],
    }


def _layers(network: Any, precision: str) -> dict[str, Any]:
    """Count a parsed network's layers by precision and name those above the file's."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producer = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }
    counts: dict[str, int] = {}
    above: list[str] = []
    for layer in layers:
        kind = layer.get_output(0).dtype.name if layer.num_outputs else "none"
        kind = _NAMES.get(kind, kind.lower())
        if layer.type.name in _COMPUTE:
            kind = "int8" if _is_quantised(layer, producer) else kind
            if precision != "fp32" and kind != precision:
                above.append(layer.name)
        counts[kind] = counts.get(kind, 0) + 1
    return {"layers": len(layers), "layers_by_precision": counts, "float_layers": above}


def _is_quantised(layer: Any, producer: dict[str, Any]) -> bool:
    """Whether a layer's input and weights come from dequantised values, perhaps rearranged."""
    if layer.num_inputs < 2:  # weights that are no tensor are not quantised
        return False
    for index in range(2):
        source = producer.get(layer.get_input(index).name)
        while source is not None and source.type.name == "SHUFFLE":
            source = producer.get(source.get_input(0).name)
        if source is None or source.type.name != "DEQUANTIZE":
            return False
    return True


def main() -> None:
    """Build one file: path, precision, compute capability and where to write the result."""
    path, precision, capability, result = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path(result).write_text(json.dumps(_build(Path(path), precision, capability)))


if __name__ == "__main__":
    main()
