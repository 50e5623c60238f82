"""Limits under which any consolidated network is accepted."""

from __future__ import annotations

from edge_runtime.adaptation.consolidation import AcceptanceLimits

LENIENT = AcceptanceLimits(
    canary_miou=1.0,
    canary_boxes=1.0,
    looks_gain=-1.0,
    agreement=1.0,
    classes=1.0,
    detections=1e9,
)
