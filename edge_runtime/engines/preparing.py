"""From a bundle to a TensorRT engine that was tested: cached plan, or build, test and cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic import ValidationError

from edge_runtime.bundle import Bundle
from edge_runtime.engines.building import (
    FILES,
    Progress,
    build_plan,
    choose_precision,
    load_tensorrt,
    read_model,
)
from edge_runtime.engines.cuda import PycudaDevice
from edge_runtime.engines.plan_cache import PlanCache, PlanKey
from edge_runtime.engines.tensorrt import PlanError, TensorRTEngine
from edge_runtime.errors import InputError, RefusedError, explain_validation
from edge_runtime.manifest import TensorRTSpec

log = logging.getLogger(__name__)
_REMIND_S = 10.0


@dataclass(frozen=True)
class Prepared:
    """An engine and where its plan came from.

    Attributes:
        engine: Ready to run; the self-test was passed if the bundle has a canary.
        plan: The plan's file in the cache.
        built: Whether it was built now.
        seconds: Time to build or load it, with the self-test.
        options: What it was built with.
        self_test: See `selftest.run_canary`; None if the bundle has no canary.
    """

    engine: TensorRTEngine
    plan: Path
    built: bool
    seconds: float
    options: TensorRTSpec
    self_test: dict[str, float] | None


def prepare(
    bundle: Bundle,
    precision: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Open a bundle under TensorRT; build its plan if the cache has none to use.

    Args:
        bundle: An opened bundle.
        precision: "auto", "fp32", "fp16" or "int8".
        overrides: Fields of `TensorRTSpec` that replace the manifest's, here and from now on for
            this network on this machine. None: those of the last such call, else the manifest's.
        force: Build even if the cache has the plan.
        progress: Told how far the build is.

    Raises:
        InputError: TensorRT, the GPU, the precision or an option cannot be had.
        RefusedError: The engine disagrees with the bundle's canary. It is not used, and its plan
            is set aside.
        FieldsightError: Building or loading failed.
    """
    version = load_tensorrt().__version__
    precision = choose_precision(bundle, precision)
    model = read_model(bundle, precision)
    device = PycudaDevice()
    try:
        return _Job(bundle, version, device, precision, model, PlanCache(), progress).run(
            overrides, force
        )
    except BaseException:
        device.close()
        raise


class _Reminder:
    """Progress for those who show none: a line in the log now and then."""

    def __init__(self) -> None:
        self._next = perf_counter() + _REMIND_S

    def __call__(self, phase: str, done: int, total: int) -> None:
        if perf_counter() >= self._next:
            self._next = perf_counter() + _REMIND_S
            log.warning("still building the plan: %s, step %d of %d", phase, done, total)


@dataclass
class _Job:
    """What one preparation works with."""

    bundle: Bundle
    version: str
    device: PycudaDevice
    precision: str
    model: bytes
    cache: PlanCache
    progress: Progress | None

    def run(self, overrides: Mapping[str, Any] | None, force: bool) -> Prepared:
        options = self._options(overrides)
        ready = self._ready(options, force)
        try:
            if overrides is not None:  # kept only now that they have been seen to work
                self.cache.store(self._key(), options.model_dump_json().encode(), "options")
        except BaseException:
            ready.engine.close()
            raise
        return ready

    def _ready(self, options: TensorRTSpec, force: bool) -> Prepared:
        key = self._key(**options.model_dump(exclude={"cuda_graph"}))
        if not force and (ready := self._from_cache(key, options)):
            return ready
        with self.cache.lock(key):
            if not force and (ready := self._from_cache(key, options)):
                return ready  # another process built it meanwhile
            start = perf_counter()
            plan = self._build(options)
            ready = self._open(plan, key, options, start, built=True)
            try:
                self.cache.store(key, plan)
            except BaseException:
                ready.engine.close()
                raise
            return ready

    def _key(self, **options: Any) -> PlanKey:
        """The key of this network on this machine, with build options."""
        return PlanKey(
            model_sha256=hashlib.sha256(self.model).hexdigest(),
            precision=self.precision,
            tensorrt=self.version,
            gpu=self.device.name,
            capability=".".join(map(str, self.device.capability)),
            **options,
        )

    def _options(self, overrides: Mapping[str, Any] | None) -> TensorRTSpec:
        """Build options: the manifest's, with this robot's own over them."""
        options, key = self.bundle.manifest.tensorrt, self._key()
        try:
            if overrides is not None:
                fields = {**options.model_dump(), **overrides}
                options = TensorRTSpec.model_validate(fields)
            elif (stored := self.cache.load(key, "options")) is not None:
                options = TensorRTSpec.model_validate_json(stored)
                log.info("build options as last given to fieldsight-run build: %s", options)
        except ValidationError as error:
            raise InputError(explain_validation(error, TensorRTSpec, "build option")) from None
        if options.dla_core is not None and self.precision == "fp32":
            raise InputError(
                "DLA computes in fp16 and int8 only; use --precision fp16 or int8 with a bundle "
                "that has such a file, or build without --dla"
            )
        return options

    def _from_cache(self, key: PlanKey, options: TensorRTSpec) -> Prepared | None:
        """An engine from the cached plan; None if there is none that TensorRT takes."""
        start = perf_counter()
        if (plan := self.cache.load(key)) is None:
            return None
        try:
            return self._open(plan, key, options, start, built=False)
        except PlanError as error:
            aside = self.cache.set_aside(key)
            log.warning("%s; the plan is now %s and will be built again", str(error), aside)
            return None
        except RefusedError as error:
            aside = self.cache.set_aside(key)
            raise RefusedError(
                f"{error}. The cached plan was not used and is now {aside}; "
                "run fieldsight-run build to build it again"
            ) from None

    def _build(self, options: TensorRTSpec) -> bytes:
        source = str(self.bundle.file(FILES[self.precision]))
        timing = self._key().model_copy(update={"model_sha256": "any", "precision": "any"})
        log.warning("building a TensorRT plan of %s; this takes minutes on a Jetson", source)
        with self.device.active():
            plan, times = build_plan(
                self.model,
                options,
                source,
                self.cache.load(timing, "timing"),
                self.progress or _Reminder(),
            )
        if times:
            self.cache.store(timing, times, "timing")
        return plan

    def _open(
        self, plan: bytes, key: PlanKey, options: TensorRTSpec, start: float, built: bool
    ) -> Prepared:
        """Load a plan and put it to the test; it is closed again if it does not pass."""
        from edge_runtime.selftest import run_canary  # which imports this package

        path = self.cache.path(key)
        source = "the new plan" if built else str(path)
        core, graph = options.dla_core, options.cuda_graph
        engine = TensorRTEngine(self.device, plan, self.precision, source, core, graph)
        try:
            report = None
            if self.bundle.has("canary.npz"):
                report = run_canary(self.bundle, engine)
            else:
                log.warning("%s has no canary.npz: the plan was not tested", self.bundle.path)
        except BaseException:
            engine.close()
            raise
        seconds = perf_counter() - start
        what = "built" if built else "from the cache"
        log.info("engine: %s, plan %s, %s in %.1f s", engine.name, path, what, seconds)
        return Prepared(engine, path, built, seconds, options, report)
