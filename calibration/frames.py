"""Frames to calibrate on: read from anything, thinned out, and chosen for diversity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from onnx import ModelProto

from calibration.network import deepest_map, expose, open_session
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.geometry import Geometry
from edge_runtime.prediction import open_frames

MOST_CANDIDATES = 1024
LEAST_FRAMES = 8


def read_candidates(
    bundle: Bundle, source: str, seed: int = 0, tick: Callable[[], None] = lambda: None
) -> list[np.ndarray]:
    """Frames of a source at the network's size, fitted as the robot does it.

    Long sources are thinned out to `MOST_CANDIDATES` frames, each with the same chance (reservoir
    sampling, Vitter 1985, algorithm R). Frames of different sizes are fine.

    Args:
        bundle: Whose network the frames are for.
        source: A dataset.yaml[:SPLIT], an image folder, or a video.
        seed: Of the thinning out.
        tick: Called after each frame read.

    Returns:
        uint8 [H, W, 3] RGB each.

    Raises:
        InputError: There are fewer than `LEAST_FRAMES`, or all are alike.
    """
    spec = bundle.manifest.input
    geometries: dict[tuple[int, int], Geometry] = {}
    random = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    with open_frames(source) as frames:
        for index, frame in enumerate(frames):
            slot = index if index < MOST_CANDIDATES else int(random.integers(index + 1))
            if slot < MOST_CANDIDATES:
                size = frame.image.shape[0], frame.image.shape[1]
                if size not in geometries:
                    net = spec.height, spec.width
                    camera = bundle.manifest.camera
                    geometries[size] = Geometry(size, net, spec.resize, camera)
                fitted = geometries[size].to_network(frame.image)
                kept[slot : slot + 1] = [fitted]
            tick()
    if len(kept) < LEAST_FRAMES:
        raise InputError(
            f"{source} has {len(kept)} readable frames; calibration needs at least {LEAST_FRAMES}, "
            "better 128 to 512, from where the robot works"
        )
    if all(np.array_equal(kept[0], other) for other in kept[1:]):
        raise InputError(f"{source}: all {len(kept)} frames are the same picture; record others")
    return kept


def embed(
    model: ModelProto,
    frames: Sequence[np.ndarray],
    adapter: np.ndarray,
    tick: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """What the network itself sees in frames: its deepest map, pooled over space.

    Returns:
        float32 [N, C], each row of unit length.
    """
    name = deepest_map(model)
    session = open_session(expose(model, [name]))
    feeds = {node.name for node in session.get_inputs()}
    rows = []
    for frame in frames:
        given = {"image": frame[None], "adapter": adapter}
        row = session.run([name], {k: v for k, v in given.items() if k in feeds})[0]
        rows.append(row.mean(axis=(0, 2, 3)))
        tick()
    table = np.stack(rows).astype(np.float32)
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)


def k_centre(embeddings: np.ndarray, count: int) -> np.ndarray:
    """A small set that leaves no frame far from its nearest member.

    Greedy farthest-first traversal (Gonzalez 1985; as core-sets for images, Sener and Savarese
    2018, algorithm 1), begun at the frame nearest to the mean.

    Args:
        embeddings: float [N, C].
        count: Members wanted; all N if there are fewer.

    Returns:
        int64 [min(count, N)], in the order of choice.
    """
    centre = embeddings.mean(axis=0)
    chosen = [int(np.linalg.norm(embeddings - centre, axis=1).argmin())]
    distance = np.linalg.norm(embeddings - embeddings[chosen[0]], axis=1)
    while len(chosen) < min(count, len(embeddings)):
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(embeddings - embeddings[chosen[-1]], axis=1))
    return np.array(chosen)


def digest(frames: Sequence[np.ndarray]) -> str:
    """Hex SHA-256 of the frames' pixels, whatever their order."""
    parts = sorted(hashlib.sha256(frame.tobytes()).digest() for frame in frames)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def domain_distance(bundle: Bundle, statistics: np.ndarray) -> float | None:
    """How far frames lie from the training domain, by the first adapter point's channels.

    Args:
        bundle: Its `reference.safetensors` holds the training domain.
        statistics: float32 [N, A] of the frames.

    Returns:
        Median over channels of the distance between means in standard deviations of the training
        domain plus the absolute logarithm of the ratio of standard deviations; about 0 within the
        domain. None if the bundle has no reference.
    """
    if not bundle.has("reference.safetensors"):
        return None
    from safetensors.numpy import load_file

    point = bundle.manifest.student.adapter[0]
    reference = load_file(bundle.file("reference.safetensors"))
    mean, var = reference[f"{point.name}.mean"], reference[f"{point.name}.var"]
    means = statistics[:, : point.channels]
    variances = statistics[:, point.channels : 2 * point.channels]
    found_mean, found_var = means.mean(0), variances.mean(0) + means.var(0)
    floor = 0.02 * float(np.median(var)) + 1e-9  # nearly dead channels say nothing
    spread = np.sqrt(var + floor)
    shift = np.abs(found_mean - mean) / spread
    return float(np.median(shift + np.abs(np.log(np.sqrt(found_var + floor) / spread))))


def run_statistics(
    model: ModelProto, frames: Sequence[np.ndarray], adapter: np.ndarray
) -> np.ndarray:
    """The network's own statistics of frames, float32 [N, A]."""
    session = open_session(model)
    return np.stack(
        [session.run(["statistics"], {"image": f[None], "adapter": adapter})[0] for f in frames]
    )
