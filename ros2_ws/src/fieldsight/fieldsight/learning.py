"""The learner behind the adapter node: one frame after the other, on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from edge_runtime import Detections, Frame, InputError, Perception, Result, Segmentation
from edge_runtime.adaptation.canary import canary_of
from edge_runtime.adaptation.guard import Guard, GuardOptions
from edge_runtime.adaptation.learner import Decision, Learner
from edge_runtime.bundle import identity_adapter
from edge_runtime.telemetry import Counters
from fieldsight import conversions
from fieldsight.state_folder import StateFolder
from fieldsight.tags import Statistics, digest_of

_IGNORED_S = 3.0  # after so long under another adapter, the one to use is given once more


class Learning:
    """Feeds a learner what perception saw, and gives the adapters that it decides on.

    Args:
        perception: Perceives held frames under candidates; used here alone.
        folder: Of the state.
        options: Of the guard.
        give: Called with each adapter to use from now on, float32 [A]; None gives none.
        counters: Counts "skipped", frames that could not be read, and "late", frames that were
            perceived under the adapter before.
        strategy: Name of the strategy.
        mode: See `Learner`.
        threshold: See `Learner`.
        keep_frames: Most frames to keep for later; 0 keeps none.

    Attributes:
        learner: The learner.
        last: Its newest decision on a frame.
        last_frame_s: When that was, by the monotonic clock.
        error: What went wrong with the last frame, if anything did.
    """

    def __init__(
        self,
        perception: Perception,
        folder: StateFolder,
        options: GuardOptions,
        give: Callable[[np.ndarray], None] | None,
        counters: Counters,
        strategy: str,
        mode: str,
        threshold: float | None,
        keep_frames: int = 0,
    ) -> None:
        bundle = perception.bundle
        self._perception, self._folder = perception, folder
        self._give, self._counters = give, counters
        log = folder.path / "decisions.jsonl"
        self.guard = Guard(bundle, options, log, canary_of(perception))
        store, memory = folder.store(bundle), folder.memory(bundle)
        frames = folder.frames(bundle, keep_frames)
        known = store, memory, self.guard, self._probe, threshold, frames
        # Every frame: of the camera's only so many a second come here.
        self.learner = Learner(bundle, strategy, mode, *known, every=1)
        if hasattr(self.learner.strategy, "prepare"):
            raise InputError(
                f"strategy '{strategy}' changes the image before perception, which only "
                "fieldsight-run adapt can do; choose another"
            )
        self.store = store
        self.identity = digest_of(identity_adapter(bundle.manifest))
        self.last: Decision | None = None
        self.last_frame_s = self._given_s = time.monotonic()
        self._other_since: float | None = None
        self.error = ""
        self._names = [spec.name for spec in bundle.manifest.classes.get("detection", [])]
        self._lock = threading.Lock()  # decisions are given in the order they are made
        self._worker = ThreadPoolExecutor(1, "learner")
        self._task: Future[None] | None = None
        self.learner.freeze(folder.frozen)
        self.digest = ""
        self._apply(self.learner.resume(), always=True)

    @property
    def busy(self) -> bool:
        """Whether a frame is being learnt from."""
        return self._task is not None and not self._task.done()

    def wanted(self, adapter: str) -> bool:
        """Whether statistics taken under the adapter of this name are those to learn from.

        The loop is closed: an adapter is judged, and followed, by frames that were perceived under
        it. It takes effect some frames after it was given; those before it are left out.
        """
        now = time.monotonic()
        if adapter == self.digest:
            self._other_since = None
            return True
        if self._other_since is None:
            self._other_since = now
        if self.ignored and now - self._given_s > _IGNORED_S and self._give is not None:
            self._given_s = now
            self._give(self.learner.adapter)
        return False

    @property
    def ignored(self) -> bool:
        """Whether perception has been using another adapter for long."""
        since = self._other_since
        return since is not None and time.monotonic() - since > _IGNORED_S

    def begin(self, parts: dict[str, Any]) -> None:
        """Learn from one whole frame, as `Intake` hands it on, on the worker's thread."""
        self._task = self._worker.submit(self._learn, parts)

    @property
    def frozen(self) -> bool:
        """Whether learning was stopped."""
        return self._folder.frozen

    def freeze(self, frozen: bool) -> None:
        """Stop learning with the adapter in use, or go on; remembered in the state folder."""
        with self._lock:
            self._folder.frozen = frozen
            self.learner.freeze(frozen)
            if frozen and self.learner.adapted:
                self.learner.snapshot()  # so that this very one is resumed

    def rollback(self) -> bool:
        """Give the adapter in use up; whether there was one."""
        with self._lock:
            adapted = self.learner.adapted
            if adapted:
                self._apply(self.learner.rollback())
            return adapted

    def reset(self) -> None:
        """Start anew with the network as trained."""
        with self._lock:
            self._apply(self.learner.reset(), always=True)

    def snapshot(self) -> int | None:
        """Store the adapter in use; its version, or None if that failed."""
        with self._lock:
            return self.learner.snapshot()

    def close(self) -> None:
        """Finish the frame at hand, keep what was learnt since the last saving, free the engine."""
        self._worker.shutdown()
        if self.learner.adapted:
            self.learner.snapshot()
        self._perception.close()
        self._folder.close()

    def _apply(self, decision: Decision, always: bool = False) -> None:
        if decision.changed or always:
            self.digest = digest_of(decision.adapter)
            self._given_s, self._other_since = time.monotonic(), None
            if self._give is not None:
                self._give(decision.adapter)

    def _learn(self, parts: dict[str, Any]) -> None:
        try:
            statistics: Statistics = parts["statistics"]
            frame, result = self._read(parts)
            with self._lock:
                if statistics.adapter != self.digest:  # changed since the frame was collected
                    self._counters.add("late")
                    return
                self.last = self.learner.observe(frame, result)
                self._apply(self.last)
            self.last_frame_s = time.monotonic()
            self.error = ""
        except InputError as error:
            self._counters.add("skipped")
            self.error = str(error)
        except Exception as error:  # nothing that a frame holds ends the learner
            self._counters.add("errors")
            self.error = f"{type(error).__name__}: {error}"

    def _read(self, parts: dict[str, Any]) -> tuple[Frame, Result]:
        """Messages as perception's frame and result."""
        message: Image | CompressedImage = parts["image"]
        if isinstance(message, CompressedImage):
            image = conversions.image_from_compressed(message)
        else:
            image = conversions.image_from_message(message)
        statistics: Statistics = parts["statistics"]
        detections: Detections | None = None
        segmentation: Segmentation | None = None
        if "detections" in parts:
            detections = conversions.detections_from_message(parts["detections"], self._names)
        if "segmentation" in parts:
            segmentation = Segmentation(conversions.mask_from_message(parts["segmentation"]))
        stamp, frame_id = statistics.stamp_ns, statistics.frame_id
        result = Result(stamp, frame_id, detections, segmentation, statistics.values)
        return Frame(image, stamp, frame_id), result

    def _probe(self, frame: Frame, adapter: np.ndarray) -> Result:
        self._perception.adapter = adapter
        return self._perception(frame)
