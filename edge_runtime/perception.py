"""Perception: a frame in, a result out. The hot path of every robot that runs Fieldsight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from edge_runtime.bundle import Bundle, identity_adapter, open_bundle
from edge_runtime.decode import decode_detections, decode_segmentation
from edge_runtime.engines import Engine, open_engine
from edge_runtime.errors import BundleError, InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.geometry import Geometry
from edge_runtime.manifest import CameraSpec, ClassSpec, Manifest
from edge_runtime.selftest import run_canary

_MAX_GEOMETRIES = 16


class Perception:
    """Runs a bundle on frames. Calls are for one thread; `adapter` may be set from another.

    Args:
        bundle: An opened bundle, or the folder of one, which is then verified.
        backend: See `open_engine`.
        precision: See `open_engine`.
        score_threshold: Detections that score less are dropped.
        iou_threshold: Overlap above which the lesser box of a class is dropped.
        tasks: Tasks to decode; all of the bundle's if None.
        threads: CPU threads for one inference; the backend's choice if None.
        max_detections: Most detections in one frame.
        engine: Run this engine, opened by the caller, in place of one for `backend`.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        backend: str = "auto",
        precision: str = "auto",
        score_threshold: float = 0.3,
        iou_threshold: float = 0.6,
        tasks: Sequence[str] | None = None,
        threads: int | None = None,
        max_detections: int = 100,
        engine: Engine | None = None,
    ) -> None:
        for name, value in (("score", score_threshold), ("iou", iou_threshold)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}_threshold is {value}, expected 0 to 1")
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.tasks = _chosen_tasks(self.manifest, tasks)
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.engine = engine or open_engine(self.bundle, backend, precision, threads)
        _check_contract(self)
        self._inputs = {name: self.engine.input_buffer(name) for name in self.engine.inputs}
        self._image = self._inputs["image"][0]
        self._camera = self.manifest.camera
        self._geometries: dict[tuple[int, ...], Geometry] = {}
        self._loaded: np.ndarray | None = None
        self._adapter = identity_adapter(self.manifest)

    def __call__(self, frame: Frame) -> Result:
        """Perceive one frame.

        Args:
            frame: A uint8 RGB image of any size, with its stamp and frame id.

        Returns:
            Detections and mask in the raw image's pixels, with the frame's stamp and id.
        """
        start = perf_counter()
        geometry = self.geometry(frame.image)
        geometry.to_network(frame.image, out=self._image)
        adapter = self._adapter
        if adapter is not self._loaded:
            np.copyto(self._inputs["adapter"], adapter)
            self._loaded = adapter
        prepared = perf_counter()

        outputs = self.engine.infer(self._inputs)
        inferred = perf_counter()

        detections = segmentation = None
        if "detection" in self.tasks:
            detections = decode_detections(
                outputs, geometry, self.score_threshold, self.iou_threshold, self.max_detections
            )
        if "segmentation" in self.tasks:
            segmentation = decode_segmentation(outputs, geometry)
        statistics = outputs.get("statistics")
        if statistics is not None:
            statistics = statistics.copy()
        end = perf_counter()

        timings = {
            "preprocess": (prepared - start) * 1e3,
            "engine": (inferred - prepared) * 1e3,
            "decode": (end - inferred) * 1e3,
            "total": (end - start) * 1e3,
        }
        return Result(frame.stamp_ns, frame.frame_id, detections, segmentation, statistics, timings)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def adapter(self) -> np.ndarray:
        """float32 [A], the adapter in use (a copy). Setting it takes effect with the next frame."""
        return self._adapter.copy()

    @adapter.setter
    def adapter(self, values: np.ndarray) -> None:
        adapter = np.array(values, np.float32)
        if adapter.shape != (self.manifest.adapter_size,):
            raise InputError(
                f"adapter has shape {adapter.shape}, expected ({self.manifest.adapter_size},) "
                f"for {self.bundle.path.name}"
            )
        if not np.isfinite(adapter).all():
            bad = int((~np.isfinite(adapter)).sum())
            raise InputError(f"adapter holds {bad} values that are not finite; refused")
        self._adapter = adapter

    @property
    def camera(self) -> CameraSpec | None:
        """The camera whose lens is undistorted, if any; that of the bundle until another is set.

        Setting it takes effect with the next frame. Results stay in the raw image's pixels.
        """
        return self._camera

    @camera.setter
    def camera(self, camera: CameraSpec | None) -> None:
        if camera != self._camera:
            self._camera = camera
            self._geometries = {}

    def classes(self, task: str) -> list[ClassSpec]:
        """Names and colours of a task's classes, in the order of label or mask value."""
        for name, classes in self.manifest.classes.items():
            if name == task:
                return classes
        raise InputError(f"{self.bundle.path.name} has no task '{task}', only {self.tasks}")

    def geometry(self, image: np.ndarray) -> Geometry:
        """The mapping for images of this size; made once a size."""
        geometries, camera = self._geometries, self._camera
        geometry = geometries.get(image.shape)
        if geometry is None:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise InputError(
                    f"image is {image.dtype} {image.shape}, expected uint8 [height, width, 3] RGB"
                )
            spec = self.manifest.input
            size = image.shape[0], image.shape[1]
            geometry = Geometry(size, (spec.height, spec.width), spec.resize, camera)
            if len(geometries) >= _MAX_GEOMETRIES:
                geometries.pop(next(iter(geometries)))
            geometries[image.shape] = geometry
        return geometry

    def self_test(self) -> dict[str, float]:
        """Run the bundle's canary through this engine; see `selftest.run_canary`.

        Raises:
            RefusedError: The outputs differ from those at export by more than they may.
        """
        self._loaded = None  # the canary overwrites the engine's adapter
        return run_canary(self.bundle, self.engine)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def _chosen_tasks(manifest: Manifest, tasks: Sequence[str] | None) -> tuple[str, ...]:
    if tasks is None:
        return tuple(manifest.tasks)
    if missing := [task for task in tasks if task not in manifest.tasks]:
        raise InputError(f"{manifest.name} has no task '{missing[0]}', only {manifest.tasks}")
    return tuple(tasks)


def _check_contract(perception: Perception) -> None:
    """Refuse a network whose inputs and outputs are not those the manifest promises."""
    manifest, engine = perception.manifest, perception.engine
    spec = manifest.input
    expected = {"image": [1, spec.height, spec.width, 3], "adapter": [manifest.adapter_size]}
    found = {name: list(tensor.shape) for name, tensor in engine.inputs.items()}
    needed = {"detection": ("boxes", "scores", "labels"), "segmentation": ("mask",)}
    missing = [
        name for task in manifest.tasks for name in needed[task] if name not in engine.outputs
    ]
    if found != expected:
        raise BundleError(f"{manifest.name}: the network takes {found}, expected {expected}")
    if missing:
        raise BundleError(f"{manifest.name}: the network has no output '{missing[0]}'")
