"""`camera_info`: messages to lenses, and a node that takes its lens from the topic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'fieldsight[ros]'")
pytest.importorskip("vision_msgs.msg", reason="run scripts/build_underlay.py")

from ros_client import Start, scene  # noqa: E402
from sensor_msgs.msg import CameraInfo  # noqa: E402

from calibration.camera import camera_info, write_camera_info  # noqa: E402
from edge_runtime import InputError  # noqa: E402
from edge_runtime.bundle import open_bundle, update_bundle  # noqa: E402
from edge_runtime.geometry import Geometry  # noqa: E402
from edge_runtime.manifest import CameraSpec  # noqa: E402
from fieldsight.camera_info import camera_from_message  # noqa: E402

pytestmark = pytest.mark.ros
CAMERAS = {
    "plumb_bob": CameraSpec(
        width=128,
        height=96,
        K=[105.1234567890123, 0, 66.1, 0, 104.9, 47.3, 0, 0, 1],
        D=[-0.28435338954352113, 0.0532, 0.00107, -7.368916673469465e-05, 0.104],
    ),
    "rational_polynomial": CameraSpec(
        width=128,
        height=96,
        model="rational_polynomial",
        K=[90.0, 0, 63.0, 0, 90.5, 48.0, 0, 0, 1],
        D=[0.5, 0.1, 0.001, 0.001, 0.01, 0.8, 0.3, 0.03],
    ),
    "equidistant": CameraSpec(
        width=128,
        height=96,
        model="equidistant",
        K=[60.0, 0, 63.0, 0, 60.5, 48.0, 0, 0, 1],
        D=[0.02, -0.01, 0.002, 0.0],
    ),
}


def message(camera: CameraSpec, **changes: Any) -> CameraInfo:
    """The CameraInfo of a camera, with some fields as given."""
    fields = {
        "width": camera.width,
        "height": camera.height,
        "distortion_model": camera.model,
        "k": camera.K,
        "d": camera.D,
    }
    return CameraInfo(**fields | changes)


def parsed(text: str) -> CameraInfo:
    """As camera_calibration_parsers fills a message from YAML, key by key."""
    found = yaml.safe_load(text)

    def data(key: str, rows: int | None, columns: int | None) -> list[float]:
        matrix = found[key]
        assert (rows, columns) in ((matrix["rows"], matrix["cols"]), (1, None))
        assert len(matrix["data"]) == matrix["rows"] * matrix["cols"]
        return matrix["data"]

    return CameraInfo(
        width=found["image_width"],
        height=found["image_height"],
        distortion_model=found["distortion_model"],
        k=data("camera_matrix", 3, 3),
        d=data("distortion_coefficients", 1, None),
        r=data("rectification_matrix", 3, 3),
        p=data("projection_matrix", 3, 4),
    )


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=list(CAMERAS))
def test_the_yaml_file_loads_into_a_message_with_equal_numbers(
    camera: CameraSpec, tmp_path: Path
) -> None:
    write_camera_info(tmp_path / "camera_info.yaml", camera, "front")
    loaded = parsed((tmp_path / "camera_info.yaml").read_text())
    assert loaded.k.tolist() == camera.K and list(loaded.d) == camera.D
    assert loaded.r.tolist() == np.eye(3).ravel().tolist()
    assert loaded.p.tolist() == camera_info(camera, "front")["projection_matrix"]["data"]
    assert loaded.p[0] > 0 and loaded.p[3] == loaded.p[7] == loaded.p[11] == 0
    assert camera_from_message(loaded) == camera


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"k": [-1.0, 0, 64, 0, 100, 48, 0, 0, 1]}, "positive focal lengths"),
        ({"k": [float("nan"), 0, 64, 0, 100, 48, 0, 0, 1]}, "finite"),
        ({"k": [100.0, 0, 64, 0, 100, 48, 0, 0, 0]}, "last row"),
        ({"d": [0.1, 0.2]}, "D has 2 coefficients"),
        ({"d": [float("inf")] * 5}, "finite"),
        ({"distortion_model": "radial_telescope"}, "radial_telescope"),
        ({"distortion_model": ""}, "plumb_bob"),
        ({"distortion_model": "equidistant"}, "equidistant takes 0 or 4"),
        ({"width": 0}, "greater than 0"),
    ],
)
def test_a_message_of_no_camera_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        camera_from_message(message(CAMERAS["plumb_bob"], **changes))


def test_a_region_of_interest_shifts_the_principal_point() -> None:
    told = message(CAMERAS["plumb_bob"])
    told.roi.x_offset, told.roi.y_offset, told.roi.width, told.roi.height = 16, 8, 64, 48
    found = camera_from_message(told)
    assert (found.width, found.height) == (64, 48)
    assert found.K[2] == pytest.approx(66.1 - 16) and found.K[5] == pytest.approx(47.3 - 8)
    told.roi.width = 120
    with pytest.raises(InputError, match="leaves the image"):
        camera_from_message(told)


def centre(robot: Any, key: Any) -> tuple[float, float]:
    """Middle of the first box of an answer."""
    position = robot.detections[key].detections[0].bbox.center.position
    return position.x, position.y


def expected(camera: CameraSpec | None) -> tuple[float, float]:
    """Where the tiny network's first box, 8..24 in 64x48, lies in a raw image of 128x96."""
    geometry = Geometry((96, 128), (48, 64), "stretch", camera)
    x1, y1, x2, y2 = geometry.boxes_to_raw(np.array([[8, 8, 24, 24]], np.float32))[0]
    return float(x1 + x2) / 2, float(y1 + y2) / 2


def answer(robot: Any) -> tuple[float, float]:
    """Send an image and wait for its box."""
    return centre(robot, robot.ask(scene()))


def test_the_lens_comes_from_the_topic_and_bad_messages_are_counted(
    start: Start, client: Start, bundle_path: Path
) -> None:
    node = start(bundle=bundle_path, max_age_ms=0, rectify="camera_info")
    robot = client(node)
    robot.activate()
    infos = robot.create_publisher(CameraInfo, "camera_info", 10)
    robot.until(infos.get_subscription_count, "subscription to camera_info")
    robot.spin_for(0.3)

    robot.send(scene())
    robot.until(lambda: robot.count("skipped") == 1, "image skipped for want of a lens")
    assert "no usable camera_info yet" in node.output
    good = CAMERAS["plumb_bob"]
    bad = [
        CameraInfo(),
        message(good, k=[float("nan")] * 9),
        message(good, distortion_model="unheard_of"),
        message(good, d=[1.0]),
    ]
    for count, wrong in enumerate(bad, start=1):
        infos.publish(wrong)
        robot.until(lambda n=count: robot.count("camera_info_rejected") == n, "rejection")
    robot.send(scene())
    robot.until(lambda: robot.count("skipped") == 2, "image skipped")

    updates = 0
    for camera in CAMERAS.values():
        infos.publish(message(camera))
        updates += 1
        robot.until(lambda n=updates: robot.count("camera_info_updates") == n, "camera_info")
        assert answer(robot) == pytest.approx(expected(camera), abs=0.01)
        assert np.abs(np.subtract(expected(camera), expected(None))).max() > 0.5
    infos.publish(CameraInfo())  # the last usable one holds
    robot.until(lambda: robot.count("camera_info_rejected") == len(bad) + 1, "rejection")
    assert answer(robot) == pytest.approx(expected(camera), abs=0.01)

    skipped = robot.count("skipped")
    infos.publish(message(good, width=128, height=128))  # not the aspect of the images
    robot.until(lambda: robot.count("camera_info_updates") == updates + 1, "camera_info")
    robot.send(scene())
    robot.until(lambda: robot.count("skipped") == skipped + 1, "image skipped")
    assert "aspect differs" in node.output
    double = good.model_dump() | {"width": 256, "height": 192}
    double["K"] = [good.K[0] * 2, 0, good.K[2] * 2 + 0.5, 0, good.K[4] * 2, good.K[5] * 2 + 0.5]
    infos.publish(message(CameraSpec(**double | {"K": [*double["K"], 0, 0, 1]})))
    robot.until(lambda: robot.count("camera_info_updates") == updates + 2, "camera_info")
    assert answer(robot) == pytest.approx(expected(good), abs=0.01)
    assert node.stop() == 0


@pytest.mark.parametrize("rectify", ["bundle", "none"])
def test_the_bundles_lens_is_used_unless_switched_off(
    start: Start, client: Start, bundle_path: Path, tmp_path: Path, rectify: str
) -> None:
    import shutil

    path = shutil.copytree(bundle_path, tmp_path / "lens.bundle")
    camera = CAMERAS["plumb_bob"]
    update_bundle(open_bundle(path), {}, {"camera": camera.model_dump()})
    robot = client(start(bundle=path, max_age_ms=0, autostart=True, rectify=rectify))
    robot.connect()
    wanted = expected(camera if rectify == "bundle" else None)
    assert answer(robot) == pytest.approx(wanted, abs=0.01)
    refused = robot.set("rectify", "none")
    assert not refused.successful and "unconfigured" in refused.reason


def test_an_unknown_way_to_rectify_ends_the_node(start: Start, bundle_path: Path) -> None:
    node = start(bundle=bundle_path, rectify="maybe")
    assert node.wait() == 2
    assert "expected one of bundle, camera_info, none" in node.output
