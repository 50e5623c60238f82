"""Places that a bundle brings along: those its weights were tuned for, and what helps there."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError

FILE = "places.safetensors"
_MOST = 64
Known = tuple[np.ndarray, np.ndarray]


def known_places(bundle: Bundle) -> list[Known]:
    """Signature float32 [2 C0] and adapter float32 [A] of each place; none in most bundles.

    Raises:
        BundleError: The file is damaged, or of another network.
    """
    if not bundle.has(FILE):
        return []
    path = bundle.file(FILE)
    try:
        arrays = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); consolidate again") from None
    points = bundle.manifest.student.adapter
    sizes = {
        "signatures": 2 * points[0].channels if points else 0,
        "adapters": bundle.manifest.adapter_size,
    }
    for name, size in sizes.items():
        values = arrays.get(name)
        if values is None or values.shape[1:] != (size,) or values.dtype != np.float32:
            found = "absent" if values is None else f"{values.dtype} {values.shape}"
            raise BundleError(
                f"{path}: '{name}' is {found}, expected float32 (places, {size}); consolidate again"
            )
        if not np.isfinite(values).all():
            raise BundleError(f"{path}: '{name}' holds values that are not finite; refused")
    signatures, adapters = arrays["signatures"], arrays["adapters"]
    if len(signatures) != len(adapters) or len(adapters) > _MOST:
        raise BundleError(
            f"{path}: {len(signatures)} signatures and {len(adapters)} adapters, expected as many "
            f"of each and at most {_MOST}"
        )
    return list(zip(signatures, adapters, strict=True))


def packed(places: list[Known]) -> bytes:
    """The file for at least one place."""
    signatures, adapters = (np.stack(part).astype(np.float32) for part in zip(*places, strict=True))
    return save({"signatures": signatures, "adapters": adapters})
