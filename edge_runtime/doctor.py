"""What this machine offers to the runtime, for bug reports and first steps."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge_runtime import __version__

_NEEDED = ("numpy", "opencv-python", "pydantic", "onnxruntime", "typer", "rich")
_OPTIONAL = {
    "supervision": "overlays of fieldsight-run predict (extra 'viz')",
    "faster-coco-eval": "detection metrics (extra 'eval')",
    "torch": "refinement and training (extras 'adapt', 'workstation')",
    "tensorrt": "NVIDIA GPUs (comes with JetPack)",
}


def examine() -> dict[str, dict[str, str]]:
    """Gather facts by heading: system, packages, backends, notes."""
    import onnxruntime

    system = {
        "fieldsight": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu cores": str(
            len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        ),
        "memory": _memory(),
        "free disk here": f"{shutil.disk_usage('.').free / 1e9:.1f} GB",
    }
    packages = {name: _version(name) or "MISSING: pip install " + name for name in _NEEDED}
    for name, purpose in _OPTIONAL.items():
        packages[name] = _version(name) or f"absent; needed for {purpose}"
    backends = {"onnxruntime": ", ".join(onnxruntime.get_available_providers())}
    cameras = sorted(str(path) for path in Path("/dev").glob("video*"))
    ros = "found" if importlib.util.find_spec("rclpy") else "absent; needed for the ROS 2 nodes"
    return {
        "system": system,
        "packages": packages,
        "backends": backends,
        "robot": {"cameras": ", ".join(cameras) or "none", "ROS 2 (rclpy)": ros},
    }


def missing_packages(report: dict[str, dict[str, str]]) -> list[str]:
    """Packages that the runtime cannot do without and that are not installed."""
    return [name for name in _NEEDED if report["packages"][name].startswith("MISSING")]


def _version(package: str) -> str | None:
    names = (package, f"{package}-headless") if package == "opencv-python" else (package,)
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{total / 1e9:.1f} GB"
