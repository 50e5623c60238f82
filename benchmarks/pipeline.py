"""What the runtime adds to the bare network: one table, one run.

    python benchmarks/pipeline.py out/demo/student.bundle
    PYTHONPATH=ros2_ws/src/fieldsight python benchmarks/pipeline.py out/demo/student.bundle

Rows, all against the median of the bare `session.run`:

* `Perception`: the whole call, from a raw 640x480 frame to boxes and mask in raw pixels.
* `adapter, statistics`: the exported network against one exported without them.
* `ROS 2 node`: from the arrival of an image message to the publishing of its answers, in one
  process and so without DDS. Only where rclpy and the package `fieldsight` can be imported.

Rounds of the compared things alternate, so that a change of the machine's speed meets both; one
ONNX Runtime session lives at a time, because the spinning threads of several distort each other.
"median ms" are over all calls of the run. "ratio" is the median over rounds of what the two medians
of one round make, seconds apart: a machine that changes its speed within the run changes it less.
"all calls" is the ratio of the two medians over all calls.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from edge_runtime.bundle import Bundle, identity_adapter, open_bundle
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

RAW_SIZE = (480, 640)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, help="frame to use; default noise over a gradient")
    parser.add_argument("--calls", type=int, default=20, help="timed calls per round")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def raw_frame(path: Path | None) -> Frame:
    """A 640x480 frame, from a file or made up."""
    if path is not None:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise SystemExit(f"error: {path} is not a readable image")
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, RAW_SIZE[::-1])
    else:
        rows = np.linspace(0, 200, RAW_SIZE[0], dtype=np.float32)[:, None, None]
        noise = np.random.default_rng(0).uniform(0, 55, (*RAW_SIZE, 3))
        image = (rows + noise).astype(np.uint8)
    return Frame(np.ascontiguousarray(image), 1, "camera")


def times_ms(call: Callable[[], object], calls: int, warm: int = 5) -> list[float]:
    """Milliseconds of each call, after a few that are not counted."""
    for _ in range(warm):
        call()
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def open_session(path: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def bare_call(bundle: Bundle, path: Path, threads: int | None) -> Callable[[], object]:
    """`session.run` on ready inputs; the session lives as long as what is returned."""
    session = open_session(path, threads)
    size = bundle.manifest.input
    feeds = {"image": np.full((1, size.height, size.width, 3), 120, np.uint8)}
    if "adapter" in {node.name for node in session.get_inputs()}:
        feeds["adapter"] = identity_adapter(bundle.manifest)
    return lambda: session.run(None, feeds)


def perception_call(
    bundle: Bundle, frame: Frame, threads: int | None
) -> tuple[Callable[[], object], Perception]:
    perception = Perception(bundle, backend="onnxruntime", threads=threads)
    return lambda: perception(frame), perception


def without_adapter(bundle: Bundle, path: Path) -> None:
    """Exports the bundle's student once more, without adapter input and statistics output."""
    from distill.graph import write_onnx
    from distill.teachers import load_weights
    from edge_runtime.student import Student

    spec, size = bundle.manifest.student, bundle.manifest.input
    classes = {str(task): len(found) for task, found in bundle.manifest.classes.items()}
    student = Student(spec.trunk, classes, spec.neck_width, spec.head_width, spec.head_depth)
    load_weights(student, bundle.file("student.safetensors"), spec.trunk)
    confidence = any(output.name == "mask_confidence" for output in bundle.manifest.outputs)
    write_onnx(
        student.eval(),
        (size.height, size.width),
        path,
        mask_confidence=confidence,
        adaptive=False,
    )


def node_call(
    bundle: Path, frame: Frame, threads: int | None
) -> tuple[Callable[[], object], Callable[[], None]]:
    """The node's own image callback on a ready message, and what shuts the node down."""
    import rclpy
    from rclpy.parameter import Parameter
    from sensor_msgs.msg import Image

    from fieldsight.perception_node import PerceptionNode

    rclpy.init()
    given = {"bundle": str(bundle), "threads": threads or 0}
    node = PerceptionNode(parameter_overrides=[Parameter(k, value=v) for k, v in given.items()])
    node.trigger_configure()
    node.trigger_activate()
    message = Image(height=RAW_SIZE[0], width=RAW_SIZE[1], encoding="rgb8", step=RAW_SIZE[1] * 3)
    message.header.frame_id = "camera"
    message.data.frombytes(memoryview(frame.image).cast("B"))

    def call() -> None:
        message.header.stamp = node.get_clock().now().to_msg()
        node.on_image(message)

    def close() -> None:
        node.destroy_node()
        rclpy.shutdown()

    return call, close


def measure(args: argparse.Namespace, bundle: Bundle, plain: Path) -> dict[str, np.ndarray]:
    """Times of every row, [rounds, calls], in alternating rounds."""
    frame = raw_frame(args.image)
    taken: dict[str, list[list[float]]] = {}
    with_node = all(importlib.util.find_spec(name) for name in ("rclpy", "fieldsight"))
    for _ in range(args.rounds):
        for name, path in (("session.run", bundle.file("model.onnx")), ("no adapter", plain)):
            call = bare_call(bundle, path, args.threads)
            taken.setdefault(name, []).append(times_ms(call, args.calls))
            del call
            gc.collect()
        whole, perception = perception_call(bundle, frame, args.threads)
        taken.setdefault("Perception", []).append(times_ms(whole, args.calls))
        perception.close()
        del whole, perception
        gc.collect()
        if with_node:
            answer, close = node_call(bundle.path, frame, args.threads)
            taken.setdefault("ROS 2 node", []).append(times_ms(answer, args.calls))
            close()
            del answer
            gc.collect()
    return {name: np.array(times) for name, times in taken.items()}


def main() -> None:
    args = parse_arguments()
    bundle = open_bundle(args.bundle)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        without_adapter(bundle, plain)
        taken = measure(args, bundle, plain)
    median = {name: float(np.median(values)) for name, values in taken.items()}
    by_round = {name: np.median(values, axis=1) for name, values in taken.items()}
    pairs = {
        "Perception": ("Perception", "session.run", 1.15),
        "adapter, statistics": ("session.run", "no adapter", 1.10),
        "ROS 2 node": ("ROS 2 node", "session.run", 1.30),
    }
    columns = ("row", "median ms", "against", "median ms", "ratio", "all calls", "aim at most")
    table, ratios = Table(*columns), {}
    for row, (one, other, aim) in pairs.items():
        if one not in median:
            table.add_row(row, "not run: rclpy or fieldsight cannot be imported")
            continue
        ratios[row] = float(np.median(by_round[one] / by_round[other]))
        cells = f"{median[one]:.2f}", other, f"{median[other]:.2f}", f"{ratios[row]:.3f}"
        table.add_row(row, *cells, f"{median[one] / median[other]:.3f}", f"{aim:.2f}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"median_ms": median, "ratio": ratios}, indent=2))


if __name__ == "__main__":
    main()
