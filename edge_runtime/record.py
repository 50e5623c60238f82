"""`calibration.json`: what each precision of a bundle cost, or why it was refused."""

from __future__ import annotations

import json
from typing import Any

from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError

RECORD = "calibration.json"


def read_record(bundle: Bundle) -> dict[str, Any]:
    """The sections ("fp16", "int8", "int8-cpu") by name; empty if nothing was calibrated yet.

    Raises:
        BundleError: The file is no JSON object of objects.
    """
    if not bundle.has(RECORD):
        return {}
    path = bundle.file(RECORD)
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}); calibrate the bundle again") from None
    if not isinstance(record, dict) or not all(isinstance(v, dict) for v in record.values()):
        raise BundleError(f"{path}: expected an object with a section for each precision")
    return record


def amended_record(bundle: Bundle, sections: dict[str, dict[str, Any]]) -> bytes:
    """The record with some sections replaced, ready to be written."""
    return json.dumps({**read_record(bundle), **sections}, indent=2).encode() + b"\n"
