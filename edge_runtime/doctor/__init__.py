"""What this machine offers to the runtime, what is wrong with it and what to do about it.

A file a theme, a function a question: each registers by `@probe` and answers with a verdict.
"""

from edge_runtime.doctor.findings import Answer, Finding, examine, missing_packages, probe
from edge_runtime.doctor.machine import Machine

__all__ = ["Answer", "Finding", "Machine", "examine", "missing_packages", "probe"]
