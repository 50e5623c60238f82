"""Consolidation: what an adapter cannot express is learnt into the weights while the robot rests.

The result is a new bundle beside the old one. Going back is pointing at the old one again.
"""

from edge_runtime.adaptation.consolidation.acceptance import AcceptanceLimits
from edge_runtime.adaptation.consolidation.settings import ConsolidationSettings

__all__ = ["AcceptanceLimits", "ConsolidationSettings"]
