"""Everything that runs on a robot: bundles, engines, perception. No torch unless training."""

from edge_runtime.bundle import Bundle, create_bundle, open_bundle, verify_bundle
from edge_runtime.engines import Engine, open_engine
from edge_runtime.errors import BundleError, FieldsightError, InputError, RefusedError
from edge_runtime.frames import Detections, Frame, Result, Segmentation
from edge_runtime.geometry import Geometry
from edge_runtime.manifest import Manifest
from edge_runtime.perception import Perception

__version__ = "0.1.0"
__all__ = [
    "Bundle",
    "BundleError",
    "Detections",
    "Engine",
    "FieldsightError",
    "Frame",
    "Geometry",
    "InputError",
    "Manifest",
    "Perception",
    "RefusedError",
    "Result",
    "Segmentation",
    "create_bundle",
    "open_bundle",
    "open_engine",
    "verify_bundle",
]
