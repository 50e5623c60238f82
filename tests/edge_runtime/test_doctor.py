"""The doctor on captured layouts of an Orin, a Thor and a PC, and on broken and hostile ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_runtime.doctor import Finding, Machine, examine, missing_packages
from edge_runtime.doctor.machine import NoAnswer

HAVE = {
    "numpy": "1.26.4",
    "opencv-python-headless": "4.11.0.86",
    "pydantic": "2.14.3",
    "onnxruntime": "1.23.2",
    "typer": "0.29.1",
    "rich": "15.0.0",
}
# AGX Orin, L4T 36.4.3. The cv zones are off and cannot be read.
ORIN: dict[str, str] = {
    "/etc/nv_tegra_release": (
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
        "TARGET_USERSPACE_LIB_DIR=nvidia\n"
    ),
    "/etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\x00",
    "/proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\x00nvidia,tegra234\x00",
    "/etc/nvpmodel.conf": (
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=1 NAME=MODE_15W >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n"
        "< PM_CONFIG DEFAULT=2 >\n"
    ),
    "/proc/meminfo": (
        "MemTotal:       64339620 kB\nMemFree:        55101248 kB\nMemAvailable:   60412232 kB\n"
        "SwapTotal:      32169792 kB\nSwapFree:       32169792 kB\n"
    ),
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "/sys/class/thermal/thermal_zone0/temp": "48906\n",
    "/sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "/sys/class/thermal/thermal_zone1/temp": "45343\n",
    "/sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "/sys/class/thermal/thermal_zone2/temp": "0\n",
    "/sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
    "/sys/class/thermal/thermal_zone8/temp": "49125\n",
    "/sys/class/thermal/thermal_zone8/trip_point_0_type": "critical\n",
    "/sys/class/thermal/thermal_zone8/trip_point_0_temp": "104500\n",
    "/sys/class/thermal/thermal_zone8/trip_point_1_type": "passive\n",
    "/sys/class/thermal/thermal_zone8/trip_point_1_temp": "99000\n",
    "/proc/sys/net/core/rmem_max": "212992\n",
    "/proc/sys/net/ipv4/ipfrag_time": "30\n",
    "/proc/sys/net/ipv4/ipfrag_high_thresh": "4194304\n",
    "/dev/nvhost-gpu": "",
    "/dev/video0": "",
    "/sys/class/video4linux/video0/name": "HD Pro Webcam C920\n",
    "/usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "/opt/ros/humble/setup.bash": "",
}
ORIN_ANSWERS = {
    "nvpmodel -q": "NV Power Mode: MODE_30W\n2",
    "jetson_clocks --show": (
        "SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit\nOnline CPUs: 0-7\n"
        "cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1728000 CurrentFreq=1420800\n"
        "GPU MinFreq=306000000 MaxFreq=612000000 CurrentFreq=306000000\nActive GPU TPCs: 4\n"
        "NV Power Mode: MODE_30W"
    ),
}
ORIN_HAS = HAVE | {"tensorrt": "10.3.0", "pycuda": "2026.1"}
# AGX Thor, L4T 38.4; the GPU's zone is not readable while it sleeps.
THOR: dict[str, str] = {
    "/etc/nv_tegra_release": (
        "# R38 (release), REVISION: 4.0, GCID: 43443517, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Dec 31 01:03:41 UTC 2025\n"
    ),
    "/proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\x00",
    "/proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\x00nvidia,tegra264\x00",
    "/proc/driver/nvidia/version": (
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release Build\n"
    ),
    "/proc/meminfo": "MemTotal: 128832012 kB\nMemAvailable: 120005120 kB\nSwapTotal: 0 kB\n",
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "/sys/class/thermal/thermal_zone0/temp": "53700\n",
    "/sys/class/thermal/thermal_zone1/type": "tj-thermal\n",
    "/sys/class/thermal/thermal_zone1/temp": "55100\n",
    "/sys/class/thermal/thermal_zone1/trip_point_0_type": "critical\n",
    "/sys/class/thermal/thermal_zone1/trip_point_0_temp": "114500\n",
    "/sys/class/thermal/thermal_zone2/type": "gpu-thermal\n",
    "/proc/sys/net/core/rmem_max": "67108864\n",
    "/proc/sys/net/ipv4/ipfrag_time": "3\n",
    "/proc/sys/net/ipv4/ipfrag_high_thresh": "134217728\n",
    "/dev/nvidia0": "",
    "/opt/ros/jazzy/setup.bash": "",
}
THOR_ANSWERS = {
    "nvpmodel -q": "NV Power Mode: MAXN\n0",
    "jetson_clocks --show": (
        "cpu13: Governor=schedutil MinFreq=2601000 MaxFreq=2601000 CurrentFreq=2601000\n"
        "gpu-gpc-0 MinFreq=1575000000 MaxFreq=1575000000 CurrentFreq=1575000000\n"
        "gpu-nvd-0 MinFreq=1692000000 MaxFreq=1692000000 CurrentFreq=1692000000\n"
    ),
    "nvidia-smi": "NVIDIA Thor, 580.00, 11.0",
}
PC: dict[str, str] = {
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "/proc/meminfo": "MemTotal: 24684084 kB\nMemAvailable: 19457656 kB\nSwapTotal: 0 kB\n",
}


class Layout(Machine):
    """A machine below a folder; its commands, modules and packages are as told."""

    def __init__(
        self,
        root: Path,
        files: dict[str, str],
        answers: dict[str, str | Exception] | None = None,
        packages: dict[str, str] = HAVE,
        modules: Sequence[str] = (),
        environ: dict[str, str] | None = None,
    ) -> None:
        super().__init__(root, self._answer, environ or {})
        self.answers = answers or {}
        self.packages, self.modules = packages, modules
        self.denied: set[str] = set()
        self.spaces: dict[str, tuple[int, int]] = {"/": (100 << 30, 50 << 30)}
        self.spaces["/dev/shm"] = (32 << 30, 32 << 30)
        for name, text in files.items():
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())

    def _answer(self, words: Sequence[str]) -> str | None:
        for name, answer in self.answers.items():
            if " ".join(words).startswith(name):
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return None

    def space(self, name: str) -> tuple[int, int] | None:
        return self.spaces.get(name)

    def can_use(self, name: str) -> bool:
        return name not in self.denied

    def has_module(self, name: str) -> bool:
        return name in self.modules

    def version(self, package: str) -> str | None:
        return self.packages.get(package)


def by_name(machine: Machine) -> dict[str, Finding]:
    findings = examine(machine)
    assert len({(f.heading, f.name) for f in findings}) == len(findings)
    for finding in findings:
        assert finding.verdict in ("ok", "warning", "problem", "absent")
        assert finding.remedy or finding.verdict in ("ok", "absent"), f"{finding} has no remedy"
        assert (finding.found + finding.remedy).isprintable()
    return {finding.name: finding for finding in findings}


def verdicts(found: dict[str, Finding], *names: str) -> list[str]:
    return [found[name].verdict for name in names]


def test_an_orin_on_jetpack_6(tmp_path: Path) -> None:
    machine = Layout(tmp_path, ORIN, dict(ORIN_ANSWERS), ORIN_HAS)
    found = by_name(machine)
    assert found["model"].found == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found["JetPack"].found == "6.2 (L4T 36.4.3)" and found["JetPack"].verdict == "ok"
    assert found["power mode"].verdict == "warning" and "MODE_30W" in found["power mode"].found
    assert "sudo nvpmodel -m 0" in found["power mode"].remedy
    assert found["clocks"].found == "GPU floats between 306 and 612 MHz"
    assert found["CUDA"].found == "12.6.11" and found["TensorRT"].found == "10.3.0"
    assert found["driver"].found == "nvgpu, of the L4T release"
    assert found["memory"].found == "65.9 GB, 61.9 GB available"
    assert found["swap"].found == "32.9 GB, 0.0 GB used"
    assert found["temperature"].found == "tj-thermal 49 °C, acts at 99 °C"
    assert found["cameras"].found == "/dev/video0 (HD Pro Webcam C920)"
    assert found["opencv-python"].found == "4.11.0.86"
    assert "source /opt/ros/humble" in found["distribution"].remedy
    dds = verdicts(found, "net.core.rmem_max", "net.ipv4.ipfrag_time", "shared memory")
    assert dds == ["warning", "warning", "ok"]
    assert not missing_packages(list(found.values()))


def test_a_thor_on_jetpack_7(tmp_path: Path) -> None:
    environ = {"ROS_DISTRO": "jazzy", "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}
    environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = "/opt/fastdds.xml"
    packages = ORIN_HAS | {"tensorrt": "10.13.3.9"}
    files = THOR | {"/opt/fastdds.xml": "<profiles/>"}
    modules = ("rclpy", "vision_msgs")
    found = by_name(Layout(tmp_path, files, dict(THOR_ANSWERS), packages, modules, environ))
    assert found["JetPack"].found == "7.1 (L4T 38.4.0)"
    assert found["power mode"].found == "MAXN" and found["power mode"].verdict == "ok"
    assert found["clocks"].found == "GPU held at 1575 MHz"
    assert found["GPU"].found == "NVIDIA Thor, compute capability 11.0"
    assert found["driver"].found == "580.00"
    assert found["temperature"].found == "tj-thermal 55 °C, acts at 114 °C"
    assert found["swap"].verdict == "absent"
    names = ("distribution", "rclpy", "vision_msgs", "middleware", "DDS profile")
    assert verdicts(found, *names) == ["ok"] * 5
    wrong = [f.name for f in found.values() if f.verdict in ("warning", "problem")]
    assert not wrong


def test_a_plain_pc_has_no_problem(tmp_path: Path) -> None:
    found = by_name(Layout(tmp_path, PC))
    assert found["operating system"].found == "Debian GNU/Linux 12 (bookworm)"
    names = ("JetPack", "power mode", "clocks", "GPU", "CUDA", "TensorRT", "rclpy", "cameras")
    assert verdicts(found, *names) == ["absent"] * 8
    assert not [f.name for f in found.values() if f.verdict == "problem"]


def test_an_empty_root_and_this_machine(tmp_path: Path) -> None:
    by_name(Layout(tmp_path, {}, packages={}))
    real = by_name(Machine())
    assert real["numpy"].verdict == "ok" and real["memory"].verdict != "absent"


def test_what_is_wrong_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    files = ORIN | {
        "/etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 3, BOARD: t186ref",
        "/sys/class/thermal/thermal_zone8/temp": "97000\n",
        "/proc/meminfo": "MemTotal: 7800000 kB\nMemAvailable: 200000 kB\n"
        "SwapTotal: 4000000 kB\nSwapFree: 100000 kB\n",
    }
    packages = {name: version for name, version in HAVE.items() if name != "onnxruntime"}
    environ = {"ROS_DISTRO": "foxy", "FASTRTPS_DEFAULT_PROFILES_FILE": "/absent.xml"}
    machine = Layout(tmp_path, files, dict(ORIN_ANSWERS), packages, (), environ)
    machine.denied = {"/dev/video0", "/dev/nvhost-gpu"}
    machine.spaces = {"/": (100 << 30, 1 << 20), "/dev/shm": (64 << 20, 64 << 20)}
    found = by_name(machine)
    names = ("JetPack", "GPU", "TensorRT", "pycuda", "rclpy", "DDS profile", "shared memory")
    assert verdicts(found, *names) == ["problem"] * 7
    assert verdicts(found, "memory", "disk", "temperature", "cameras") == ["problem"] * 4
    assert verdicts(found, "swap", "distribution") == ["warning"] * 2
    assert found["JetPack"].found == "of unknown number (L4T 35.4.1)"
    assert "usermod -aG video" in found["cameras"].remedy
    assert missing_packages(list(found.values())) == ["onnxruntime"]


@pytest.mark.parametrize(
    "release",
    [
        "# R3",
        "",
        "\x00" * 500,
        "# R36 (release), REVISION: ",
        "\x1b[2J\x1b]0;x\x07" * 9,
        "R" * 10**6,
    ],
)
def test_a_release_file_that_does_not_tell(tmp_path: Path, release: str) -> None:
    found = by_name(Layout(tmp_path, ORIN | {"/etc/nv_tegra_release": release}))
    assert found["JetPack"].verdict == "warning"
    assert "/etc/nv_tegra_release begins with" in found["JetPack"].found


HOSTILE = ["\x1b[31m", "NaN", "-1", "9" * 400, "nan kB\n" * 10**5, "{" * 10**5, "[red]x[/nope]"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_files_and_answers_end_nothing(tmp_path: Path, text: str) -> None:
    files = dict.fromkeys(ORIN, text)
    answers: dict[str, str | Exception] = dict.fromkeys(("nvpmodel", "jetson_", "nvidia-"), text)
    for finding in by_name(Layout(tmp_path, files, answers, ORIN_HAS, ("jtop",))).values():
        assert len(finding.found) < 400


def test_a_command_that_hangs_is_said_so(tmp_path: Path) -> None:
    answers: dict[str, str | Exception] = {"nvpmodel": NoAnswer("'nvpmodel -q' did not answer")}
    found = by_name(Layout(tmp_path, ORIN, answers))
    assert found["power mode"].verdict == "warning"
    assert "did not answer" in found["power mode"].found
    assert found["clocks"].verdict == "absent"


def test_jetson_stats_is_asked_first_where_it_is_there(tmp_path: Path) -> None:
    answers: dict[str, str | Exception] = {sys.executable: '{"mode": "MAXN_SUPER", "locked": true}'}
    found = by_name(Layout(tmp_path, ORIN, answers | ORIN_ANSWERS, modules=("jtop",)))
    assert found["power mode"].found == "MAXN_SUPER"
    found = by_name(Layout(tmp_path, ORIN, answers, modules=("jtop",)))
    assert found["clocks"].found == "held"


def test_clocks_from_the_kernel_without_root(tmp_path: Path) -> None:
    folder = "/sys/class/devfreq/17000000.gpu"
    files = ORIN | {f"{folder}/min_freq": "306000000\n", f"{folder}/max_freq": "1300500000\n"}
    assert by_name(Layout(tmp_path, files))["clocks"].found.endswith("306 and 1300 MHz")
