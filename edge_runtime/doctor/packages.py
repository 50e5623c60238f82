"""Python packages: those that are needed, and what the others are good for."""

from __future__ import annotations

from edge_runtime.doctor.findings import Answer, probe
from edge_runtime.doctor.machine import Machine

NEEDED = ("numpy", "opencv-python", "pydantic", "onnxruntime", "typer", "rich")
OPTIONAL = {
    "supervision": "overlays of fieldsight-run predict (extra 'viz')",
    "faster-coco-eval": "detection metrics (extra 'eval')",
    "torch": "refinement and training (extras 'adapt', 'workstation')",
}
# Other distributions of the same modules.
ALIASES = {
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python"),
    "onnxruntime": ("onnxruntime-gpu",),
}


def _version(machine: Machine, package: str) -> str | None:
    names = (package, *ALIASES.get(package, ()))
    return next((found for name in names if (found := machine.version(name))), None)


def _register(package: str, purpose: str | None) -> None:
    @probe("packages", package)
    def ask(machine: Machine) -> Answer:
        if found := _version(machine, package):
            return Answer.ok(found)
        if purpose is None:
            return Answer.problem("missing", f"pip install {package}")
        return Answer.absent(f"needed for {purpose}")


for _name in NEEDED:
    _register(_name, None)
for _name, _purpose in OPTIONAL.items():
    _register(_name, _purpose)
