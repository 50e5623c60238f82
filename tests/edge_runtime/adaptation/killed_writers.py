"""Run as a program: forks writers on demand, each of which stores until it is killed.

A line `KIND FOLDER BUNDLE` on standard input starts one and prints its process id; the writer
prints the number of every version that is stored completely. `reap` waits for its end. Importing
takes longer than storing: hence one process that imports and many that are forked from it.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator

import numpy as np

from edge_runtime.adaptation.frame_memory import FrameMemory
from edge_runtime.adaptation.memory import PlaceMemory
from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.store import AdapterStore
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.frames import Frame, Result, Segmentation


def store_adapters(folder: str, bundle: Bundle) -> Iterator[int]:
    """Adapters that hold their own version number."""
    store = AdapterStore(folder, bundle)
    newest = store.load()
    for version in itertools.count(newest.version + 1 if newest else 1):
        yield store.save(np.full(bundle.manifest.adapter_size, version), {"version": version})


def remember_places(folder: str, bundle: Bundle) -> Iterator[int]:
    """Places far from each other, whose adapters hold their number; the oldest are forgotten."""
    memory = PlaceMemory(Reference.of(bundle), folder, most=4)
    for number in itertools.count(int(max([0, *(p.adapter[0] for p in memory.places)])) + 1):
        signature = np.array([10.0 * number] * 3 + [1.0] * 3)
        memory.remember(signature, np.full(6, number))
        yield number


def keep_frames(folder: str, bundle: Bundle) -> Iterator[int]:
    """Noise frames, all of them new to the memory, whose stamps count up; cleared when full."""
    memory = FrameMemory(folder, bundle, most=5)
    start = max([0, *(frame.stamp_ns for frame in memory.frames)]) + 1
    for stamp in itertools.count(start):
        if len(memory) == memory.most:
            memory.clear()
        image = np.random.default_rng(stamp).integers(0, 256, (48, 64, 3), np.uint8)
        statistics = np.array([10.0 * stamp] * 3 + [1.0] * 3, np.float32)
        result = Result(stamp, "camera", None, Segmentation(image[..., 0] % 3), statistics)
        assert memory.offer(Frame(image, stamp, "camera"), result).kept
        yield stamp


KINDS = {"store": store_adapters, "places": remember_places, "frames": keep_frames}


def main() -> None:
    bundles: dict[str, Bundle] = {}
    print("ready", flush=True)
    child = 0
    for line in sys.stdin:
        if line.strip() == "reap":
            os.waitpid(child, 0)
            print("reaped", flush=True)
            continue
        kind, folder, path = line.split()
        if path not in bundles:
            bundles[path] = open_bundle(path)
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            for version in KINDS[kind](folder, bundles[path]):
                os.write(1, f"{version}\n".encode())
            os._exit(0)


if __name__ == "__main__":
    main()
