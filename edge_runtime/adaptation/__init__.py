"""Adaptation on the robot: notice that the world changed, correct the network, never make it worse.

The weights stay frozen; what is learnt is an `adapter` of a few kilobytes.
"""

from edge_runtime.adaptation.decisions import DecisionLog, read_decisions
from edge_runtime.adaptation.drift import Drift, DriftMonitor
from edge_runtime.adaptation.frame_memory import FrameMemory
from edge_runtime.adaptation.guard import Guard, GuardOptions
from edge_runtime.adaptation.learner import Decision, Learner
from edge_runtime.adaptation.memory import Place, PlaceMemory
from edge_runtime.adaptation.sealed import StoreError
from edge_runtime.adaptation.store import AdapterStore, Stored

__all__ = [
    "AdapterStore",
    "Decision",
    "DecisionLog",
    "Drift",
    "DriftMonitor",
    "FrameMemory",
    "Guard",
    "GuardOptions",
    "Learner",
    "Place",
    "PlaceMemory",
    "StoreError",
    "Stored",
    "read_decisions",
]
