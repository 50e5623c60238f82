"""Fifteen common corruptions at five severities, and what they cost a model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.terminal import progress_bar

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
_LEAST = 32  # pixels, of imagecorruptions
# These draw from generators of their own, which take a seed; the others from numpy's global one.
_SEEDED = {"glass_blur", "impulse_noise"}
# An image, uint8 [H, W, 3], and its index to the corrupted image.
Corrupt = Callable[[np.ndarray, int], np.ndarray]


def corrupted(
    image: np.ndarray, name: str, severity: int, index: int = 0, seed: int = 0
) -> np.ndarray:
    """An image under a corruption of Hendrycks & Dietterich 2019 (ImageNet-C), by imagecorruptions.

    Args:
        image: uint8 [H, W, 3], at least 32 pixels each way.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        index: of the image; with ``seed`` it decides everything random.
        seed: of the evaluation.

    Raises:
        InputError: the image is too small, or no such corruption.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise InputError(
            f"no corruption {name!r} of severity {severity}; there are {', '.join(CORRUPTIONS)} "
            "of severities 1 to 5"
        )
    if min(image.shape[:2]) < _LEAST:
        raise InputError(
            f"an image of {image.shape[1]}x{image.shape[0]} pixels is too small to corrupt, "
            f"expected {_LEAST} or more each way; raise --size"
        )
    from imagecorruptions import corrupt

    drawn = zlib.crc32(f"{seed},{name},{severity},{index}".encode())
    more = {"seed": drawn} if name in _SEEDED else {}
    with _numpy_seeded(drawn), np.errstate(all="ignore"):
        result: np.ndarray = corrupt(
            np.ascontiguousarray(image), severity=severity, corruption_name=name, **more
        )
    return np.ascontiguousarray(result)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


@dataclass(frozen=True)
class CorruptionErrors:
    """Errors of one model, fractions: on clean images, and per corruption by severity 1 to 5."""

    clean: float
    errors: dict[str, list[float]]

    @property
    def mean(self) -> float:
        """Over all corruptions and severities."""
        return float(np.mean(list(self.errors.values())))

    @property
    def retained(self) -> float | None:
        """Accuracy under corruption as a share of that on clean images."""
        return (1 - self.mean) / (1 - self.clean) if self.clean < 1 else None


def corruption_errors(
    error: Callable[[Corrupt], float],
    seed: int = 0,
    progress: bool = True,
    names: tuple[str, ...] = CORRUPTIONS,
) -> CorruptionErrors:
    """Judges a model on clean images and under every corruption and severity.

    Args:
        error: the model's error, a fraction, on images that went through what it is given.
        seed: of what is random in a corruption.
        progress: show a bar.
        names: corruptions to take.
    """
    clean = error(lambda image, _index: image)
    found: dict[str, list[float]] = {name: [] for name in names}
    with progress_bar() as bar:
        bar.disable = not progress
        for name, severity in bar.track(
            [(n, s) for n in names for s in SEVERITIES], description="corruptions"
        ):

            def spoil(
                image: np.ndarray, index: int, n: str = name, s: int = severity
            ) -> np.ndarray:
                return corrupted(image, n, s, index, seed)

            found[name].append(error(spoil))
    return CorruptionErrors(clean, found)


def mean_corruption_error(
    own: CorruptionErrors, baseline: CorruptionErrors
) -> tuple[float | None, list[str]]:
    """mCE (Hendrycks & Dietterich 2019, section 4.1): 1 is as good as the baseline, lower better.

    Mean over corruptions of the error summed over severities, divided by the baseline's.

    Returns:
        The figure, and the corruptions that are left out of it, as the baseline makes no error
        under them, to which nothing can be relative; None where that is so of all.
    """
    ratios, left_out = [], []
    for name, errors in own.errors.items():
        reference = sum(baseline.errors[name])
        if reference == 0:
            left_out.append(name)
        else:
            ratios.append(sum(errors) / reference)
    return (float(np.mean(ratios)) if ratios else None), left_out


def corruption_figures(
    own: CorruptionErrors, baseline: CorruptionErrors | None = None
) -> dict[str, Any]:
    """As plain values: ``clean_error``, ``error`` by corruption and severity, ``mean_error``,
    ``retained`` and, with a baseline, ``mce`` and the same of the ``baseline``."""
    figures: dict[str, Any] = {
        "clean_error": own.clean,
        "mean_error": own.mean,
        "retained": own.retained,
        "error": own.errors,
    }
    if baseline is not None:
        figures["mce"], left_out = mean_corruption_error(own, baseline)
        if left_out:
            figures["mce_without"] = left_out
        figures["baseline"] = corruption_figures(baseline)
    return figures
