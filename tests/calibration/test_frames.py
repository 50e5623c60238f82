from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.frames import digest, k_centre, read_candidates
from calibration.study import open_study
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError, RefusedError


def write_frames(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / f"{index:03}.png"), image)
    return folder


def noise(count: int, size: tuple[int, int] = (40, 60)) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8))


def test_k_centre_takes_the_far_ones_first_and_stays_within_the_greedy_bound() -> None:
    random = np.random.default_rng(1)
    crowd = random.normal(0, 0.01, (200, 4))
    far = np.eye(4) * 5
    points = np.concatenate([crowd, far])
    chosen = k_centre(points, 5)
    assert set(chosen[1:]) == {200, 201, 202, 203}
    distance = np.linalg.norm(points[:, None] - points[chosen][None], axis=2).min(axis=1)
    assert distance.max() < 0.1
    assert len(set(k_centre(points, 500))) == len(points)
    assert (k_centre(points, 5) == chosen).all()


def test_frames_of_any_size_are_fitted_and_broken_ones_left_out(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = write_frames(tmp_path / "mixed", [*noise(6), *noise(6, (90, 31))])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    frames = read_candidates(bundle, str(folder))
    spec = bundle.manifest.input
    assert [f.shape for f in frames] == [(spec.height, spec.width, 3)] * 12
    assert digest(frames) == digest(frames[::-1]) != digest(frames[1:])


def test_a_long_source_is_thinned_out_from_end_to_end(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [np.full((8, 8, 3), value, np.uint8) for value in range(200)]
    folder = write_frames(tmp_path / "long", levels)
    monkeypatch.setattr("calibration.frames.MOST_CANDIDATES", 50)
    kept = np.sort([int(f[0, 0, 0]) for f in read_candidates(bundle, str(folder), seed=3)])
    assert len(set(kept)) == 50
    assert kept[0] < 40 and kept[-1] > 160 and 60 < np.median(kept) < 140


def test_too_few_or_equal_frames_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    few = write_frames(tmp_path / "few", noise(3))
    with pytest.raises(InputError, match=r"3 readable frames.*at least 8"):
        read_candidates(bundle, str(few))
    alike = write_frames(tmp_path / "alike", noise(1) * 9)
    with pytest.raises(InputError, match="all 9 frames are the same picture"):
        read_candidates(bundle, str(alike))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images"):
        read_candidates(bundle, str(tmp_path / "none"))


def test_frames_of_another_world_are_refused_unless_forced(bundle: Bundle, tmp_path: Path) -> None:
    dark = [image // 40 for image in noise(20)]
    folder = write_frames(tmp_path / "dark", dark)
    with pytest.raises(RefusedError, match=r"standard deviations from the domain.*--force"):
        open_study(bundle, str(folder), None, 16)
    study = open_study(bundle, str(folder), None, 16, force=True)
    assert study.distance is not None and study.distance > 1


def test_frames_to_judge_on_are_not_those_calibrated_on(bundle: Bundle, blocks: Path) -> None:
    study = open_study(bundle, f"{blocks}:train", None, 16)
    judged = {frame.tobytes() for frame in study.agreement.frames}  # type: ignore[attr-defined]
    assert judged and not judged & {frame.tobytes() for frame in study.frames}
    assert study.judge(study.model) == {"masks": 1.0, "boxes": 1.0}
    with pytest.raises(InputError, match="expected 16 to 512"):
        open_study(bundle, f"{blocks}:train", None, 4)
