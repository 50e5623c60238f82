"""`fieldsight-calibrate camera`: real pictures, what it writes, and what it refuses."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import camera_scenes as scenes
import cv2
import numpy as np
import pytest
import yaml
from rich.console import Console

from calibration import cli
from calibration.camera import parse_board, views
from calibration.camera.views import expand, gather
from edge_runtime import cli as run_cli
from edge_runtime.bundle import create_bundle, open_bundle
from edge_runtime.errors import InputError
from edge_runtime.geometry import Geometry

ROOT = Path(__file__).resolve().parents[2]
BOARD = "chessboard:9x6:0.025"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Run:
    """Runs `fieldsight-calibrate camera` with arguments; gives exit code, stdout and stderr."""
    monkeypatch.setattr("calibration.cli.camera.console", Console(width=200))
    return partial(command_line, cli.main, "fieldsight-calibrate", "camera")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rendered views of the board, as PNG."""
    folder = tmp_path_factory.mktemp("photos")
    camera = scenes.Camera(
        "plumb_bob",
        np.array([[533.0, 0, 322], [0, 531, 238], [0, 0, 1]]),
        np.array([-0.29, 0.08, 0.001, -0.002, 0.01]),
    )
    texture = scenes.chessboard(9, 6)
    for index, pose in enumerate(scenes.poses(12, (9, 6), 0.5, reach=(0.25, 0.15))):
        image = scenes.photo(camera, texture, *pose, seed=index)
        cv2.imwrite(str(folder / f"view{index:02}.png"), image)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    spec = importlib.util.spec_from_file_location(
        "tiny_bundle_parts", ROOT / "tests" / "edge_runtime" / "conftest.py"
    )
    assert spec is not None and spec.loader is not None
    parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parts)
    files = {"model.onnx": parts.tiny_network()}
    return create_bundle(tmp_path / "tiny.bundle", parts.tiny_fields(), files).path


def state(folder: Path) -> dict[str, bytes]:
    """Every file's content."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


class Page(html.parser.HTMLParser):
    """Collects a page's tags and what it loads from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]


def test_real_views_give_the_known_camera(
    run: Run, chessboard: Path, bundle: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "camera", tmp_path / "camera.json"
    pattern = chessboard / "left[01][0-9].jpg"
    before = state(bundle)
    code, text, errors = run(
        pattern, "--board", BOARD, "--out", out, "--json", file, "--bundle", bundle
    )
    assert code == 0, errors
    assert "next: fieldsight-run predict" in text and f"wrote {out / 'report.html'}" in text
    found = json.loads(file.read_text())
    assert found["views_used"] + found["views_rejected"] == found["images"] == 13
    assert found["views_used"] >= 12 and found["model"] == "plumb_bob"
    assert found["rms_px"] < 0.25 and found["cross_validated_rms_px"] < 0.3
    assert found["camera_matrix"][0][0] == pytest.approx(536, rel=0.01)
    assert found["camera_matrix"][1][1] == pytest.approx(536, rel=0.01)
    assert max(found["standard_deviation_px"].values()) < 1
    assert found["straightness"]["before_px"] > 0.5 > 0.15 > found["straightness"]["after_px"]

    info = yaml.safe_load((out / "camera_info.yaml").read_text())
    assert np.ravel(found["camera_matrix"]).tolist() == info["camera_matrix"]["data"]
    assert found["distortion"] == info["distortion_coefficients"]["data"]
    assert (info["image_width"], info["image_height"]) == (640, 480)

    page = Page((out / "report.html").read_text())
    assert page.tags.count("svg") == 2 and page.tags.count("img") == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)

    stored = open_bundle(bundle)
    assert stored.manifest.camera is not None
    assert stored.manifest.camera.K == np.ravel(found["camera_matrix"]).tolist()
    after = state(bundle)
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json"}


def test_the_bundles_geometry_straightens_the_real_board(
    run: Run, chessboard: Path, bundle: Path
) -> None:
    """Corners found anew in what the network is fed lie on straight lines."""
    code, _, errors = run(chessboard / "left[01][0-9].jpg", "--board", BOARD, "--bundle", bundle)
    assert code == 0, errors
    camera = open_bundle(bundle).manifest.camera
    image = cv2.cvtColor(cv2.imread(str(chessboard / "left03.jpg")), cv2.COLOR_BGR2RGB)
    bends = []
    for given in (None, camera):
        flat = Geometry((480, 640), (480, 640), camera=given).to_network(image)
        corners = parse_board(BOARD).find(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY))
        assert corners is not None
        rows = corners.pixels.reshape(6, 9, 2).astype(float)
        bow = rows[:, 4] - (rows[:, 0] + rows[:, 8]) / 2
        along = rows[:, 8] - rows[:, 0]
        across = np.abs(bow[:, 0] * along[:, 1] - bow[:, 1] * along[:, 0])
        bends.append(float((across / np.linalg.norm(along, axis=1)).max()))
    assert bends[0] > 2 and bends[1] < 0.4


@pytest.mark.parametrize("model", ["rational_polynomial", "equidistant"])
def test_other_models_fit_the_real_views_or_are_refused(
    run: Run, chessboard: Path, tmp_path: Path, model: str
) -> None:
    file = tmp_path / "camera.json"
    code, _, errors = run(
        chessboard / "left[01][0-9].jpg", "--board", BOARD, "--model", model, "--json", file
    )
    if model == "equidistant":  # the fisheye model runs away where the views do not hold it
        assert code == 3 and "turns back on itself" in errors and not file.exists()
        return
    assert code == 0 and len(json.loads(file.read_text())["distortion"]) == 8


def test_unreadable_images_and_such_without_board_are_counted(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "photos", tmp_path / "camera.json"
    shutil.copytree(photos, folder)
    (folder / "cut.png").write_bytes((folder / "view00.png").read_bytes()[:5000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "liar.png").write_text("no picture <script>")
    cv2.imwrite(str(folder / "wall.png"), np.full((480, 640, 3), 90, np.uint8))
    cv2.imwrite(
        str(folder / "shaken.png"),
        cv2.blur(cv2.imread(str(folder / "view07.png")), (9, 1)),
    )
    out = tmp_path / "out"
    code, text, errors = run(folder, "--board", BOARD, "--json", file, "--out", out)
    assert code == 0, errors
    found = json.loads(file.read_text())
    assert found["images_unreadable"] == 3 and found["images_without_board"] == 1
    assert found["rejected"]["shaken"]["kind"] in ("blurred", "duplicate")
    assert found["rejected"]["wall"]["kind"] == "no_board"
    assert {"cut.png", "empty.jpg", "liar.png"} <= found["rejected"].keys()
    assert "left out: wall (no board)" in text
    assert "<script>" not in (out / "report.html").read_text()


def test_a_video_is_searched_for_its_sharpest_frames(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (640, 480))
    for file in sorted(photos.iterdir()):
        image = cv2.imread(str(file))
        for frame in (cv2.blur(image, (15, 15)), image, cv2.blur(image, (9, 9))):
            writer.write(frame)
    writer.release()
    monkeypatch.setattr(views, "MOST_VIDEO_FRAMES", 12)
    found = gather([str(path)], parse_board(BOARD))
    assert len(found.views) >= 11
    assert {int(view.name.rpartition("_")[2]) % 3 for view in found.views} == {1}


def test_names_of_pictures_from_two_folders_are_told_apart(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    found = gather([str(photos / "view0[0-3].png"), str(other / "view00.png")], parse_board(BOARD))
    names = [view.name for view in found.views]
    assert len(set(names)) == len(names) == 5 and "view00 (2)" in names


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere/*.png", "--board", BOARD], 2, "'nowhere/*.png' matches nothing"),
        (["camera:0", "--board", BOARD], 2, "record the camera first"),
        (["EMPTY", "--board", BOARD], 2, "no images in this folder"),
        (["NOTES", "--board", BOARD], 2, "no image could be read (1 skipped"),
        (["PHOTOS", "--board", "chessboard:9x6"], 2, "1 parts, not 2"),
        (["PHOTOS", "--board", BOARD, "--model", "omni"], 2, "'omni' is unknown"),
        (["PHOTOS", "--board", BOARD, "--name", "front left"], 2, "such as front_left"),
        (["PHOTOS/view0[0-3].png", "--board", BOARD], 2, "found in 4 of 4 images; at least 6"),
        (
            ["PHOTOS/view00.png", "--board", "chessboard:10x7:0.025"],
            2,
            "count inner corners, not squares",
        ),
        (["PHOTOS/view0[0-1].png", "--board", "chessboard:7x5:0.025"], 2, "2 of 2 looked at show"),
        (
            ["PHOTOS/view00.png", "SMALL", "--board", BOARD],
            2,
            "is 320x240 pixels, view00 is 640x480",
        ),
        (["WALLS", "--board", BOARD], 2, "no chessboard of another size either"),
        (["ALIKE", "--board", BOARD], 3, "repeat others"),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(
    run: Run,
    photos: Path,
    bundle: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    for name in ("empty", "walls", "alike"):
        (tmp_path / name).mkdir()
    view = cv2.imread(str(photos / "view00.png"))
    cv2.imwrite(str(tmp_path / "small.png"), cv2.resize(view, (320, 240)))
    cv2.imwrite(str(tmp_path / "walls" / "a.png"), np.full((480, 640, 3), 90, np.uint8))
    for index in range(7 if "ALIKE" in arguments else 0):
        cv2.imwrite(str(tmp_path / "alike" / f"{index}.png"), view)
    (tmp_path / "notes.txt").write_text("no picture")
    places = {
        "PHOTOS": str(photos),
        "EMPTY": str(tmp_path / "empty"),
        "NOTES": str(tmp_path / "notes.txt"),
        "SMALL": str(tmp_path / "small.png"),
        "WALLS": str(tmp_path / "walls"),
        "ALIKE": str(tmp_path / "alike"),
    }
    words = [re.sub(r"^[A-Z]+", lambda m: places.get(m[0], m[0]), word) for word in arguments]
    before, out = state(bundle), tmp_path / "out"
    done, _, errors = run(
        *words, "--bundle", bundle, "--out", out, "--json", tmp_path / "found.json"
    )
    assert (done, "Traceback" in errors) == (code, False) and says in errors
    assert state(bundle) == before
    assert not out.exists() and not (tmp_path / "found.json").exists()


def test_a_broken_bundle_is_refused_before_anything_is_searched(
    run: Run, photos: Path, bundle: Path
) -> None:
    (bundle / "model.onnx").write_bytes(b"altered")
    code, out, errors = run(photos, "--board", BOARD, "--bundle", bundle)
    assert code == 2 and "model.onnx has 7 bytes" in errors and "rms" not in out


def test_a_camera_that_is_replaced_is_named(
    run: Run, photos: Path, bundle: Path, command_line: Run
) -> None:
    for time, says in enumerate((False, True)):
        code, out, errors = run(photos, "--board", BOARD, "--bundle", bundle)
        assert code == 0, (time, errors)
        assert ("replaced the camera it had (plumb_bob, 640x480)" in out) == says
    code, out, errors = command_line(run_cli.main, "fieldsight-run", "info", bundle)
    assert code == 0 and "plumb_bob, calibrated at 640x480" in out, errors


def test_patterns_folders_and_files_are_expanded_once(photos: Path) -> None:
    files = sorted(str(file) for file in photos.iterdir())
    assert expand([str(photos)]) == expand([str(photos / "*.png"), files[3]]) == files
    with pytest.raises(InputError, match="matches nothing"):
        expand([files[0], str(photos / "*.gif")])
