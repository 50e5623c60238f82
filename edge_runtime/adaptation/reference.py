"""What the network's features looked like on the data it was trained on."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edge_runtime.adaptation.divergence import VARIANCE_FLOOR
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError, InputError
from edge_runtime.manifest import AdapterPointSpec

FRAMES_KEY = "frames.statistics"  # of source frames in order, in `reference.safetensors`


@dataclass(frozen=True)
class Reference:
    """Channel statistics of the training domain, C channels over all adapter points.

    Attributes:
        points: The adapter points, in the network's order.
        mean: float32 [C].
        var: float32 [C], of the mixture over frames.
        frames: float32 [N, A], statistics of source frames in the order they were recorded, from
            which `drift` learns how far a source sequence strays; None if the bundle has none.
    """

    points: tuple[AdapterPointSpec, ...]
    mean: np.ndarray
    var: np.ndarray
    frames: np.ndarray | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> Reference:
        """Read the reference of a bundle.

        Raises:
            BundleError: It has none, or one that is damaged or of another network.
        """
        points = tuple(bundle.manifest.student.adapter)
        if not points:
            raise BundleError(f"{bundle.path}: the network has no adapter point; nothing to adapt")
        path = bundle.file("reference.safetensors")
        try:
            arrays = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise BundleError(f"{path}: cannot be read ({error}); export again") from None
        means: list[np.ndarray] = []
        variances: list[np.ndarray] = []
        for point in points:
            for key, into in (("mean", means), ("var", variances)):
                values = arrays.get(f"{point.name}.{key}")
                if values is None or values.shape != (point.channels,):
                    found = "absent" if values is None else f"of shape {values.shape}"
                    raise BundleError(
                        f"{path}: '{point.name}.{key}' is {found}, expected ({point.channels},); "
                        "export again"
                    )
                into.append(values.astype(np.float32))
        mean, var = np.concatenate(means), np.concatenate(variances)
        if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
            raise BundleError(f"{path}: a mean or variance is not finite; export again")
        frames = arrays.get(FRAMES_KEY)
        frames = _frames_of_canary(bundle) if frames is None else frames
        return cls(points, mean, var, _checked(frames, bundle))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each point's channels lie within [C]."""
        found, at = {}, 0
        for point in self.points:
            found[point.name] = slice(at, at + point.channels)
            at += point.channels
        return found

    @property
    def first(self) -> slice:
        """Channels of the first point, whose statistics no adapter changes."""
        return slice(0, self.points[0].channels)

    def split(self, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Statistics [..., A], per point means and then variances, as means and variances [..., C].

        An adapter splits alike, into scales and shifts.

        Raises:
            InputError: The vector's length is not this network's.
        """
        self._check_size(statistics)
        return statistics[..., self._order[0]], statistics[..., self._order[1]]

    def first_of(self, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances [..., C0] of the first point; see `split`."""
        self._check_size(statistics)
        width = self.first.stop
        return statistics[..., :width], statistics[..., width : 2 * width]

    def join(self, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Scale [C] and shift [C] as the network takes them: an adapter, float32 [A]."""
        adapter = np.empty(2 * len(self.mean), np.float32)
        adapter[self._order[0]], adapter[self._order[1]] = scale, shift
        return adapter

    @cached_property
    def floor(self) -> np.ndarray:
        """float [C], variances below which a channel counts as near-dead, the same for a point."""
        floors = [np.median(self.var[part]) for part in self.slices.values()]
        counts = [point.channels for point in self.points]
        return np.repeat(VARIANCE_FLOOR * np.array(floors) + 1e-12, counts)

    @cached_property
    def spread(self) -> np.ndarray:
        """float64 [C], standard deviations, none of them next to nothing."""
        var = self.var.astype(np.float64)
        least = VARIANCE_FLOOR * np.median(var)
        return np.maximum(np.sqrt(np.maximum(var, least)), 1e-6)

    def _check_size(self, statistics: np.ndarray) -> None:
        if statistics.shape[-1] != 2 * len(self.mean):
            raise InputError(
                f"statistics have {statistics.shape[-1]} values, expected {2 * len(self.mean)}; "
                "they are another bundle's"
            )

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices into [A] of the first and of the second half of every point."""
        starts = np.concatenate([np.full(s.stop - s.start, s.start) for s in self.slices.values()])
        widths = np.repeat([p.channels for p in self.points], [p.channels for p in self.points])
        first = starts + np.arange(len(starts))
        return first, first + widths


def _frames_of_canary(bundle: Bundle) -> np.ndarray | None:
    """Statistics that the network gave for the canary's frames at export, if they are there."""
    if not bundle.has("canary.npz"):
        return None
    try:
        with np.load(bundle.file("canary.npz"), allow_pickle=False) as archive:
            key = "expected_statistics"
            return archive[key] if key in archive.files else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.file('canary.npz')}: cannot be read: {error}") from None


def _checked(frames: np.ndarray | None, bundle: Bundle) -> np.ndarray | None:
    if frames is None:
        return None
    size = bundle.manifest.adapter_size
    if frames.ndim != 2 or frames.shape[1] != size or not np.isfinite(frames).all():
        raise BundleError(
            f"{bundle.path}: statistics of source frames have shape {frames.shape} or are not "
            f"finite, expected (N, {size}); export again"
        )
    return frames.astype(np.float32)
