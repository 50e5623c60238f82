"""The guard: no adapter is used before it was shown to be better, none is kept that turns bad.

A candidate is judged in the shadow, on frames that the current adapter was run on too. After its
promotion every result is watched; an alarm takes it back. Whatever is decided is recorded with the
numbers that it was decided by. The guard runs no network: forward passes (the candidate's, the
mirror image's, the canary's) are the caller's to spend.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import Field

from edge_runtime.adaptation.canary import CanaryReport, SelfTest
from edge_runtime.adaptation.decisions import DecisionLog
from edge_runtime.adaptation.evidence import Evidence, Outcome
from edge_runtime.adaptation.home import Home
from edge_runtime.adaptation.limits import (
    CHECKS,
    Limits,
    merits,
    movement,
    outside_ball,
)
from edge_runtime.adaptation.reference import Reference
from edge_runtime.bundle import Bundle, identity_adapter
from edge_runtime.frames import Frame, Result
from edge_runtime.manifest import Spec


class GuardOptions(Spec):
    """How strict the guard is.

    Attributes:
        limits: What an adapter may not do.
        least_frames: Frames that candidate and current must have been seen on.
        window: Results that are watched together after a promotion.
        watch_factor: How much wider the limits are while watching, where frames differ.
        keep: Promoted adapters that can be gone back to.
        cooldown: Frames without promotion after an alarm; doubled by each further alarm.
        thaw: Frames without fault after which a fault is over.
    """

    limits: Limits = Limits()
    least_frames: int = Field(default=2, ge=1)
    window: int = Field(default=10, ge=2)
    watch_factor: float = Field(default=3.0, ge=1)
    keep: int = Field(default=4, ge=1)
    cooldown: int = Field(default=30, ge=0)
    thaw: int = Field(default=10, ge=1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate is promoted, why, and by which numbers."""

    promote: bool
    reasons: list[str]
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why the adapter in use was taken back; `adapter` float32 [A] is what to use instead."""

    reasons: list[str]
    numbers: dict[str, float]
    adapter: np.ndarray


@dataclass(frozen=True, slots=True)
class _Promoted:
    """An adapter in use, and what it led to when it was promoted (None: not yet known)."""

    adapter: np.ndarray
    outcome: Outcome | None


_MOST_DOUBLINGS = 5
_WATCHED = 2  # every so many frames the window is summed up: each time nine tenths are the same


class Guard:
    """Judges candidates, watches what was promoted, remembers what to go back to.

    Args:
        bundle: Whose network is adapted.
        options: How strict to be.
        log: Where decisions are recorded: a file, or a log; None for in memory alone.
        canary: Tests a candidate that would be promoted; see `canary_of`. None for no such test.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: GuardOptions | None = None,
        log: DecisionLog | Path | str | None = None,
        canary: SelfTest | None = None,
    ) -> None:
        self.options = options or GuardOptions()
        self.reference = Reference.of(bundle)
        self.home = Home.of(bundle)
        self.classes = len(bundle.manifest.classes.get("segmentation", []))
        self.log = log if isinstance(log, DecisionLog) else DecisionLog(log)
        self.canary = canary
        self.frozen: str | None = None
        self.frames = 0
        self._wide = self.options.limits.loosened(self.options.watch_factor)
        self._identity = identity_adapter(bundle.manifest)
        self._kept: deque[_Promoted] = deque(maxlen=self.options.keep)
        self._window: deque[Evidence] = deque(maxlen=self.options.window)
        self._clean, self._alarms, self._quiet = 0, 0, 0
        self._wait_until = 0

    @property
    def adapter(self) -> np.ndarray:
        """float32 [A], the adapter that was promoted last and not taken back, or the identity."""
        return (self._kept[-1].adapter if self._kept else self._identity).copy()

    def outcome(self, adapter: np.ndarray, evidence: list[Evidence]) -> Outcome:
        """Sum up what was seen under one adapter; see `Outcome.over`."""
        return Outcome.over(adapter, evidence, self.reference, self.home)

    def evidence(
        self, result: Result, mirrored: Result | None = None, frame: Frame | None = None
    ) -> Evidence:
        """Read the evidence off one result; see `Evidence.of`."""
        return Evidence.of(result, self.classes, mirrored, frame)

    def judge(self, current: Outcome, candidate: Outcome, merit: str | None = None) -> Verdict:
        """Decide whether a candidate may replace the current adapter. Recorded, not carried out.

        Args:
            current: What the adapter in use led to.
            candidate: What the candidate led to, in the shadow, on the same frames.
            merit: What else speaks for it, such as labelled frames that it knows better.

        Returns:
            The verdict: promoted only if nothing speaks against it and something for it.
        """
        limits, report = self.options.limits, None
        against = self._refusals(current, candidate)
        against += [said for check in CHECKS if (said := check(candidate, current, limits))]
        pro = merits(candidate, current, limits) + ([merit] if merit else [])
        if not against and not pro:
            against = ["not shown to be better than the current adapter"]
        if not against and self.canary is not None:
            report = self.canary(candidate.adapter)
            if report.kept < limits.canary_kept:
                least = limits.canary_kept
                against = [f"the canary keeps {report.kept:.1%} of what it knew, least {least:.1%}"]
        numbers = self._numbers(report, current=current, candidate=candidate)
        verdict = Verdict(not against, against or pro, numbers)
        self._record("judge", promote=verdict.promote, reasons=verdict.reasons, numbers=numbers)
        return verdict

    def refusal(self, adapter: np.ndarray) -> str | None:
        """Why an adapter may not be used at all, or None: a check without a forward pass."""
        return outside_ball(np.asarray(adapter), self.reference, self.options.limits)

    def promoted(self, adapter: np.ndarray, outcome: Outcome | None = None) -> None:
        """Note that an adapter is in use from now on, and watch it.

        Args:
            adapter: float32 [A].
            outcome: What it led to in the shadow; the first window sets the standard if None, as
                after a restart.
        """
        self._kept.append(_Promoted(np.array(adapter, np.float32), outcome))
        self._window.clear()
        moved = movement(adapter, self.reference)
        self._record("promotion", kept=len(self._kept), numbers={"movement": moved})

    def followed(self, adapter: np.ndarray) -> None:
        """Note that the promoted adapter was refined by a small step; it stays under watch.

        Nothing new is kept to go back to: an alarm takes the whole lineage back.
        """
        if self._kept:
            last = self._kept.pop()
            self._kept.append(_Promoted(np.array(adapter, np.float32), last.outcome))

    def rollback(self, reason: str = "asked for") -> np.ndarray:
        """Give the adapter in use up.

        Returns:
            float32 [A], the one promoted before it; the identity if there is none.
        """
        if self._kept:
            self._kept.pop()
        self._window.clear()
        self._record("rollback", reasons=[reason], kept=len(self._kept))
        return self.adapter

    def reset(self) -> np.ndarray:
        """Forget every promoted adapter; returns the identity, float32 [A]."""
        self._kept.clear()
        self._window.clear()
        self._record("reset")
        return self.adapter

    def watch(
        self,
        result: Result,
        fault: str | None = None,
        mirrored: Result | None = None,
        unadapted: Outcome | None = None,
    ) -> Alarm | None:
        """Take one frame's result under the adapter in use; for every frame that is looked at.

        Args:
            result: What perception gave.
            fault: What is wrong with the frame, if anything: it is no evidence then, and nothing
                is promoted until faults have been absent for `thaw` frames.
            mirrored: What it gave for the mirror image, on frames where the pass was spent.
            unadapted: What the identity led to on the latest frames, where passes were spent.

        Returns:
            An alarm if the adapter must go. It has been taken back: use `alarm.adapter`.
        """
        self.frames += 1
        if self._faulty(fault):
            return None
        if not self._kept:
            return None
        self._window.append(self.evidence(result, mirrored))
        if self._window[-1].finite:
            if len(self._window) < self.options.window:
                return None
            if self.frames % _WATCHED and unadapted is None:
                self._calm()
                return None
        now, used = self.outcome(self.adapter, list(self._window)), self._kept[-1]
        if used.outcome is None:
            self._kept[-1] = used = _Promoted(used.adapter, now)
        before = used.outcome or now
        reasons = [said for check in CHECKS if (said := check(now, before, self._wide))]
        if unadapted is not None:
            limits = self.options.limits
            reasons += [
                f"worse than unadapted: {said}"
                for check in CHECKS
                if (said := check(now, unadapted, limits))
            ]
        if not reasons:
            self._calm()
            return None
        return self._alarm(reasons, self._numbers(promoted=used.outcome, now=now))

    def _alarm(self, reasons: list[str], numbers: dict[str, float]) -> Alarm:
        wait = self.options.cooldown * 2 ** min(self._alarms, _MOST_DOUBLINGS)
        self._alarms, self._quiet = self._alarms + 1, 0
        self._wait_until = self.frames + wait
        self._record("alarm", reasons=reasons, numbers=numbers, wait=wait)
        return Alarm(reasons, numbers, self.rollback(reasons[0]))

    def _calm(self) -> None:
        """A frame without alarm: after ten cooldowns of them past alarms no longer count."""
        self._quiet += 1
        if self._quiet > 10 * self.options.cooldown:
            self._alarms = 0

    def _faulty(self, fault: str | None) -> bool:
        """Freeze on a fault, thaw when it has been gone for long enough; True meanwhile."""
        if fault is not None:
            if self.frozen is None:
                self._record("freeze", reasons=[fault])
            self.frozen, self._clean = fault, 0
            self._window.clear()
        elif self.frozen is not None:
            self._clean += 1
            if self._clean >= self.options.thaw:
                self._record("thaw", reasons=[f"no fault for {self._clean} frames"])
                self.frozen = None
        return self.frozen is not None

    def _refusals(self, current: Outcome, candidate: Outcome) -> list[str]:
        """What forbids a promotion whatever the evidence says."""
        reasons = []
        if self.frozen is not None:
            reasons.append(f"frozen: {self.frozen}")
        if self.frames < self._wait_until:
            reasons.append(f"{self._wait_until - self.frames} frames to wait after an alarm")
        if (seen := min(current.frames, candidate.frames)) < self.options.least_frames:
            reasons.append(f"seen on {seen} frames, expected {self.options.least_frames}")
        if said := self.refusal(candidate.adapter):
            reasons.append(said)
        return reasons

    def _numbers(
        self, canary: CanaryReport | None = None, **outcomes: Outcome | None
    ) -> dict[str, float]:
        """What was measured, flat, by "whose.what"; what was not is left out."""
        found: dict[str, float] = {}
        for whose, outcome in outcomes.items():
            if outcome is None:
                continue
            for what in ("frames", "distance", "class_distance", "agreement"):
                found[f"{whose}.{what}"] = getattr(outcome, what)
            found[f"{whose}.confidence"] = outcome.confidence  # type: ignore[assignment]
            found[f"{whose}.detections"] = outcome.detections  # type: ignore[assignment]
            if outcome.finite:
                found[f"{whose}.movement"] = movement(outcome.adapter, self.reference)
        if canary is not None:
            found |= {"canary.kept": canary.kept, "canary.frames": canary.frames}
        return {name: float(value) for name, value in found.items() if value is not None}

    def _record(self, kind: str, **fields: object) -> None:
        self.log.write(kind, self.frames, **fields)
