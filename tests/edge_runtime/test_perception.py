from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle import Bundle, create_bundle
from edge_runtime.errors import BundleError, InputError, RefusedError
from edge_runtime.frames import Frame
from edge_runtime.perception import Perception

IDENTITY = [1, 1, 1, 0, 0, 0]


def flat(color: tuple[int, int, int], size: tuple[int, int] = (96, 128)) -> Frame:
    return Frame(np.full((*size, 3), color, np.uint8), 123_456_789, "front_camera")


@pytest.fixture
def perception(tiny_bundle: Bundle) -> Perception:
    return Perception(tiny_bundle, threads=1)


def test_a_result_carries_the_frame_and_raw_coordinates(perception: Perception) -> None:
    result = perception(flat((10, 200, 30)))
    assert (result.stamp_ns, result.frame_id) == (123_456_789, "front_camera")
    assert result.detections is not None and result.segmentation is not None
    np.testing.assert_allclose(result.detections.boxes, [[16, 16, 48, 48], [18, 16, 50, 48]])
    assert result.detections.labels.tolist() == [0, 1]
    assert result.segmentation.mask.shape == (96, 128)
    assert (result.segmentation.mask == 1).all()
    assert result.statistics is not None
    np.testing.assert_allclose(result.statistics, np.array([10, 200, 30, 0, 0, 0]) / 255, atol=1e-4)
    assert result.timings_ms.keys() == {"preprocess", "engine", "decode", "total"}
    parts = sum(result.timings_ms[name] for name in ("preprocess", "engine", "decode"))
    assert result.timings_ms["total"] == pytest.approx(parts)


def test_results_stay_as_they_were_when_the_next_frame_comes(perception: Perception) -> None:
    first = perception(flat((200, 0, 0)))
    assert first.segmentation is not None and first.statistics is not None
    mask, statistics = first.segmentation.mask.copy(), first.statistics.copy()
    second = perception(flat((0, 0, 200)))
    assert second.segmentation is not None and (second.segmentation.mask == 2).all()
    np.testing.assert_array_equal(first.segmentation.mask, mask)
    np.testing.assert_array_equal(first.statistics, statistics)


def test_the_adapter_changes_the_next_frame_and_can_be_taken_back(perception: Perception) -> None:
    frame = flat((10, 200, 30))
    assert perception.adapter.tolist() == IDENTITY
    values = np.array([1, 1, 1, 0, 0, 5], np.float32)
    perception.adapter = values
    values[:] = 0  # what was set is a copy
    shifted = perception(frame).segmentation
    assert shifted is not None and (shifted.mask == 2).all()
    perception.adapter[:] = 0  # what is read is a copy
    assert perception.adapter[5] == 5
    perception.adapter = np.array(IDENTITY)
    back = perception(frame).segmentation
    assert back is not None and (back.mask == 1).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.ones(5), r"shape \(5,\), expected \(6,\)"),
        (np.array([1, 1, np.nan, 0, np.inf, 0]), "2 values that are not finite"),
    ],
)
def test_an_unusable_adapter_is_refused_and_the_old_one_kept(
    perception: Perception, values: np.ndarray, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        perception.adapter = values
    assert perception.adapter.tolist() == IDENTITY


def test_tasks_can_be_left_out(tiny_bundle: Bundle) -> None:
    only = Perception(tiny_bundle, tasks=["detection"], threads=1)(flat((0, 0, 0)))
    assert only.segmentation is None and only.detections is not None
    with pytest.raises(InputError, match="no task 'depth'"):
        Perception(tiny_bundle, tasks=["depth"])


def test_thresholds_are_obeyed_and_checked(tiny_bundle: Bundle) -> None:
    found = Perception(tiny_bundle, score_threshold=0.1, iou_threshold=1.0, threads=1)(
        flat((0, 0, 0))
    ).detections
    assert found is not None and len(found) == 4
    with pytest.raises(InputError, match=r"score_threshold is 1\.5, expected 0 to 1"):
        Perception(tiny_bundle, score_threshold=1.5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["grey", "alpha", "16 bit", "empty"],
)
def test_other_images_are_refused(perception: Perception, image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[height, width, 3\] RGB"):
        perception(Frame(image, 0, "x"))


def test_frames_of_several_sizes_may_alternate(perception: Perception) -> None:
    for size in [(96, 128), (48, 64), (31, 57)] * 2:
        segmentation = perception(flat((0, 200, 0), size)).segmentation
        assert segmentation is not None
        assert segmentation.mask.shape == size and (segmentation.mask == 1).all()


def test_after_warm_up_only_the_result_is_allocated(perception: Perception) -> None:
    frame = flat((10, 200, 30), (480, 640))
    result = perception(frame)
    assert result.segmentation is not None
    allocated = []
    for _ in range(3):  # other threads of the process allocate too, but not each time
        tracemalloc.start()
        held = [perception(frame) for _ in range(3)]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        masks = sum(r.segmentation.mask.nbytes for r in held if r.segmentation is not None)
        allocated.append(peak - masks)
    assert min(allocated) < 64_000


def test_self_test_passes_on_the_exported_network(perception: Perception) -> None:
    perception.adapter = np.array([0, 0, 0, 0, 0, 5])
    report = perception.self_test()
    assert report == {"frames": 2, "mask_agreement": 1.0, "boxes_found": 1.0}
    shifted = perception(flat((200, 0, 0))).segmentation  # the adapter is back afterwards
    assert shifted is not None and (shifted.mask == 2).all()


def altered(canary: bytes, change: dict[str, Any]) -> bytes:
    with np.load(io.BytesIO(canary)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, **{name: make(arrays) for name, make in change.items()}})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"expected_mask": lambda a: 2 - a["expected_mask"]}, RefusedError, "mask pixels"),
        ({"expected_boxes": lambda a: a["expected_boxes"] + 9}, RefusedError, "of the boxes"),
        ({"images": lambda a: a["images"][:, ::2]}, BundleError, r"images are \(24, 64, 3\)"),
        ({"images": lambda a: a["images"][:0]}, BundleError, "no uint8 'images'"),
    ],
    ids=["mask", "boxes", "size", "none"],
)
def test_self_test_refuses_what_differs(
    tmp_path: Path,
    network: bytes,
    canary: bytes,
    fields: dict[str, Any],
    change: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    files: dict[str, bytes | Path] = {
        "model.onnx": network,
        "canary.npz": altered(canary, change),
    }
    perception = Perception(create_bundle(tmp_path / "x.bundle", fields, files), threads=1)
    with pytest.raises(error, match=says):
        perception.self_test()


def test_a_network_that_breaks_the_manifests_promise_is_refused(
    tmp_path: Path, network: bytes, fields: dict[str, Any]
) -> None:
    fields["input"]["height"] = 50
    bundle = create_bundle(tmp_path / "x.bundle", fields, {"model.onnx": network})
    with pytest.raises(BundleError, match=r"\[1, 48, 64, 3\].*expected.*\[1, 50, 64, 3\]"):
        Perception(bundle)


def test_classes_and_paths(tiny_bundle: Bundle) -> None:
    perception = Perception(str(tiny_bundle.path), threads=1)
    assert [entry.name for entry in perception.classes("segmentation")] == ["red", "green", "blue"]
    with pytest.raises(InputError, match="no task 'depth'"):
        perception.classes("depth")
    perception.close()
