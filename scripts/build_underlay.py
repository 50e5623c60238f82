"""Build the ROS 2 interface packages that PyPI has no wheel for, into this Python's environment.

    .venv/bin/python scripts/build_underlay.py

Does nothing where `import vision_msgs` works (a ROS installation brings it) or where there is no
rclpy to use it with. Needs a C++ compiler, cmake and ninja or make from the system.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
UNDERLAY = ROOT / "ros2_ws" / "underlay"
BUILD_MODULES = ("ament_package", "catkin_pkg", "rosidl_generator_py", "rosidl_adapter")
_INCLUDES = re.compile(r'(INTERFACE_INCLUDE_DIRECTORIES )"[^"]*/site-packages/numpy/[^"]*"')


def importable(name: str) -> bool:
    """Whether a fresh interpreter imports `name`; its path set-up may differ from ours by now."""
    found = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True)
    return found.returncode == 0


def install_requirements() -> None:
    """Install the generators, if any of them is absent."""
    if all(importlib.util.find_spec(name) for name in BUILD_MODULES):
        return
    requirements = UNDERLAY / "requirements.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "-r", str(requirements)], check=True)


def patch_exports(prefix: Path) -> int:
    """Replace the build machine's include folders in the wheels' CMake exports by ours.

    Returns:
        How many files were changed; 0 the second time.
    """
    includes = f"{sysconfig.get_path('include')};{np.get_include()}"
    changed = 0
    for file in sorted(prefix.glob("share/*/cmake/*rosidl_generator_pyExport.cmake")):
        text = file.read_text(encoding="utf-8")
        patched = _INCLUDES.sub(lambda match: f'{match[1]}"{includes}"', text)
        if patched != text:
            file.write_text(patched, encoding="utf-8")
            changed += 1
    return changed


def build(package: Path, prefix: Path) -> None:
    """Configure, compile and install one ament_cmake package; output is shown on failure only."""
    environment = os.environ | {
        "AMENT_PREFIX_PATH": str(prefix),
        "CMAKE_PREFIX_PATH": str(prefix),
        "PATH": f"{prefix / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    with tempfile.TemporaryDirectory(prefix="fieldsight-underlay-") as folder:
        configure = ["cmake", "-S", str(package), "-B", folder]
        configure += ["-G", "Ninja"] if shutil.which("ninja") else []
        configure += [
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
        ]
        compile_and_install = ["cmake", "--build", folder, "--parallel", "--target", "install"]
        for command in (configure, compile_and_install):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.stderr.write(done.stdout[-8000:] + done.stderr[-8000:])
                raise SystemExit(f"error: building {package.name} failed: {' '.join(command)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force", action="store_true", help="build although it is there")
    arguments = parser.parse_args()
    if not importable("rclpy"):
        print("underlay: no rclpy for this Python, nothing to build (ROS 2 nodes need it)")
        return
    if importable("vision_msgs.msg") and not arguments.force:
        print("underlay: vision_msgs is there, nothing to build")
        return
    prefix = Path(sys.prefix)
    origin = importlib.util.find_spec("rclpy").origin  # type: ignore[union-attr]
    if origin is None or not Path(origin).is_relative_to(prefix) or sys.prefix == sys.base_prefix:
        raise SystemExit(
            f"error: rclpy comes from {origin}, not from a virtual environment's wheels; install "
            "vision_msgs the same way, such as apt install ros-$ROS_DISTRO-vision-msgs"
        )
    if missing := [name for name in ("cmake", "c++") if shutil.which(name) is None]:
        raise SystemExit(
            f"error: {' and '.join(missing)} not found; install a C++ compiler and cmake "
            "(apt install build-essential cmake) and run this again"
        )
    install_requirements()
    patch_exports(prefix)
    print("underlay: building vision_msgs, about a minute ...", flush=True)
    build(UNDERLAY / "vision_msgs", prefix)
    if not importable("vision_msgs.msg"):
        raise SystemExit(f"error: vision_msgs was installed into {prefix} but does not import")
    print(f"underlay: vision_msgs installed into {prefix}")


if __name__ == "__main__":
    main()
