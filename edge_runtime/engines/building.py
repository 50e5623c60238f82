"""From an ONNX file to a TensorRT plan, with TensorRT 10.3 to 11.

Networks are strongly typed: a tensor has the type that the ONNX file gives it, so precision is
chosen by choosing the file, in every version alike.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from edge_runtime.bundle import Bundle
from edge_runtime.engines.cuda import GpuError, advice
from edge_runtime.errors import BundleError, FieldsightError, InputError
from edge_runtime.manifest import TensorRTSpec

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)
T = TypeVar("T")
FILES = {"int8": "model.int8.onnx", "fp16": "model.fp16.onnx", "fp32": "model.onnx"}
OLDEST = (10, 3)
Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


class BuildError(FieldsightError):
    """TensorRT cannot make a plan of this network on this machine."""


def load_tensorrt():  # unannotated, so that type checkers see the module itself
    """The real `tensorrt` module.

    Raises:
        InputError: It is absent, a mere type stub, or too old.
    """
    try:
        import tensorrt as trt
    except ImportError as error:
        raise InputError(
            f"tensorrt cannot be imported ({error}); it comes with JetPack, so make the "
            "environment with --system-site-packages, or pip install tensorrt on a PC"
        ) from None
    if not hasattr(trt, "Logger"):
        raise InputError("tensorrt is installed as type stubs only; install TensorRT itself")
    if version() < OLDEST:
        raise InputError(
            f"TensorRT {trt.__version__} is too old; 10.3 (JetPack 6.2) or newer is needed"
        )
    return trt


def version() -> tuple[int, int]:
    """Major and minor version of TensorRT."""
    import tensorrt as trt

    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def choose_precision(bundle: Bundle, precision: str) -> str:
    """The precision to run in: what was asked for, or the smallest the bundle has a file for.

    Raises:
        InputError: The bundle has no file of the precision that was asked for.
    """
    if precision == "auto":
        chosen = next(name for name, file in FILES.items() if bundle.has(file))
        passed = [FILES[name] for name in list(FILES)[: list(FILES).index(chosen)]]
        why = f"the bundle has {FILES[chosen]}" + (f" but no {', '.join(passed)}" if passed else "")
        log.info("precision: %s, because %s", chosen, why)
        return chosen
    if not bundle.has(FILES[precision]):
        have = ", ".join(name for name, file in FILES.items() if bundle.has(file))
        raise InputError(
            f"{bundle.path} has no {FILES[precision]}, which --precision {precision} needs on "
            f"TensorRT; this bundle has: {have}. Use one of those, or make the file with "
            "fieldsight-calibrate"
        )
    log.info("precision: %s, as asked", precision)
    return precision


def read_model(bundle: Bundle, precision: str) -> bytes:
    """Bytes of the bundle's network, checked against the manifest as they were read.

    Raises:
        BundleError: The file is not what the manifest lists.
    """
    path = bundle.file(FILES[precision])
    try:
        model = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}; copy the bundle again") from None
    if hashlib.sha256(model).hexdigest() != bundle.manifest.files[path.name].sha256:
        raise BundleError(f"{path} was altered: its SHA-256 differs from the manifest's; refused")
    return model


@functools.cache
def logger():
    """TensorRT's logger, one for the process: to Python's logging, keeping what went wrong."""
    import tensorrt as trt

    levels = {"INTERNAL_ERROR": 40, "ERROR": 40, "WARNING": 30, "INFO": 10, "VERBOSE": 5}

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: deque[str] = deque(maxlen=8)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            level = levels.get(severity.name, logging.INFO)
            if level >= logging.ERROR:
                self.problems.append(msg)
            log.log(min(level, logging.WARNING), "TensorRT: %s", msg)

        def explain(self) -> str:
            """What went wrong since last asked, and what to do."""
            said = "; ".join(self.problems) or "TensorRT gave no reason"
            self.problems.clear()
            return f"{said}; {advice(said)}"

    return Logger()


def build_plan(
    model: bytes,
    options: TensorRTSpec,
    source: str,
    timing: bytes | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, bytes]:
    """Build a plan; the GPU's context is current.

    Args:
        model: An ONNX file's bytes.
        options: Memory, effort and DLA.
        source: Name of the file, for messages.
        timing: A timing cache of an earlier build.
        progress: Told how far each phase is, from any thread.

    Returns:
        The plan and the timing cache.

    Raises:
        BuildError: The network cannot be parsed or built; names the nodes.
        InputError: There is no such DLA core.
        GpuError: TensorRT cannot use the GPU.
    """
    import tensorrt as trt

    messages = logger()
    builder = _create(lambda: trt.Builder(messages))
    network = builder.create_network(_creation_flags())
    parser = trt.OnnxParser(network, messages)
    if not parser.parse(model):
        raise BuildError(_parser_errors(parser, source))
    config = _configure(builder, network, options)
    cache = _attach_timing(config, timing)
    monitor = _monitor(progress) if progress else None
    if monitor is not None:
        config.progress_monitor = monitor
    messages.problems.clear()
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise BuildError(f"{source}: TensorRT could not build a plan: {messages.explain()}")
    times = b"" if cache is None else bytes(memoryview(cache.serialize()))
    return bytes(memoryview(plan)), times


def _create(make: Callable[[], T]) -> T:
    """A builder or runtime; the bindings raise TypeError where the library gives none."""
    messages = logger()
    messages.problems.clear()
    try:
        return make()
    except (TypeError, RuntimeError) as error:
        raise GpuError(f"TensorRT cannot use the GPU ({error}): {messages.explain()}") from None


def create_runtime() -> tensorrt.Runtime:
    """TensorRT's runtime.

    Raises:
        GpuError: TensorRT cannot use the GPU.
    """
    import tensorrt as trt

    return _create(lambda: trt.Runtime(logger()))


def _creation_flags() -> int:
    """Strong typing: a flag in TensorRT 10, and what there is anyway in 11."""
    import tensorrt as trt

    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configure(
    builder: tensorrt.Builder, network: tensorrt.INetworkDefinition, options: TensorRTSpec
) -> tensorrt.IBuilderConfig:
    import tensorrt as trt

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.optimization_level
    core = options.dla_core
    if core is None:
        return config
    if core >= builder.num_DLA_cores:
        raise InputError(
            f"there is no DLA core {core}: this machine has {builder.num_DLA_cores}; "
            "build without --dla, or take dla_core out of the bundle's manifest"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    fallback = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    log.warning(
        "DLA core %d takes %d of %d layers; these run on the GPU: %s",
        core,
        len(layers) - len(fallback),
        len(layers),
        ", ".join(fallback) or "none",
    )
    return config


def _attach_timing(
    config: tensorrt.IBuilderConfig, timing: bytes | None
) -> tensorrt.ITimingCache | None:
    """A timing cache for this build, filled from `timing` if TensorRT accepts it."""
    for content in (timing, b"") if timing else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        log.warning("TensorRT does not take the timing cache; this build measures anew")
    return None


def _parser_errors(parser: tensorrt.OnnxParser, source: str) -> str:
    lines = [f"{source}: TensorRT cannot read this network; simplify or export it again:"]
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator, text = error.node_operator(), error.desc()
        node = f"node '{error.node_name()}' ({operator})"
        lines.append(f"  {node}: {error.code().name}: {text}")
        if "Plugin not found" in text:  # how TensorRT says that it does not know an operator
            lines.append(f"  TensorRT has no operator {operator}: express it by standard ones")
    return "\n".join(lines)


def _monitor(progress: Progress):
    """A monitor that passes progress on, and cancels the build when that raises."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.failure: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.steps[phase_name])

        def _tell(self, phase: str, done: int) -> bool:
            try:
                progress(phase, done, self.steps[phase])
            except BaseException as error:  # it must not cross TensorRT's threads
                self.failure = error
            return self.failure is None

    return Monitor()
