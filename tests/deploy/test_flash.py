"""scripts/flash-jetson.sh against a real sshd; docker and systemd there are stand-ins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

Bundles = tuple[Path, Path]
SLOW = pytest.mark.slow


def test_a_board_gets_image_and_bundle_and_runs_them(board, bundles: Bundles) -> None:
    tag = board.image(1)
    done = board.flash(bundles[0])
    assert done.returncode == 0, done.stderr
    assert board.runs["image"] == tag and board.runs["bundle"].startswith("first-")
    installed = board.home / "bundles" / board.runs["bundle"]
    for file in bundles[0].iterdir():
        assert (installed / file.name).read_bytes() == file.read_bytes()
    assert {path.name for path in installed.iterdir()} == {p.name for p in bundles[0].iterdir()}
    steps = [call[call.index("fieldsight-run") + 1] for call in board.calls("fieldsight-run")]
    assert steps == ["build", "doctor"]
    assert board.calls(
        "docker", "run", "--runtime", "nvidia", "fieldsight-state:/var/lib/fieldsight"
    )
    assert (board.prefix / "etc/systemd/system/fieldsight.service").is_file()
    assert (board.prefix / "etc/sysctl.d/60-fieldsight-dds.conf").is_file()
    assert board.calls("systemctl", "enable", "fieldsight.service")
    assert not list((board.home / "incoming").glob("*.tar.gz"))
    assert "next: ssh board" in done.stderr

    settings = board.home / "fieldsight.env"
    settings.write_text("ROS_DOMAIN_ID=7\n")
    before = len(board.calls("docker", "load"))
    again = board.flash(bundles[0])
    assert again.returncode == 0, again.stderr
    assert len(board.calls("docker", "load")) == before, "the image is there and was loaded again"
    assert board.link("previous") is None
    assert settings.read_text() == "ROS_DOMAIN_ID=7\n", "an update overwrote the board's settings"


def test_an_update_and_back_and_forth(board, bundles: Bundles) -> None:
    first = board.image(1)
    assert board.flash(bundles[0]).returncode == 0
    second = board.image(2)
    done = board.flash(bundles[1])
    assert done.returncode == 0, done.stderr
    assert board.runs["image"] == second and board.runs["bundle"].startswith("second-")
    tags = {tag: image["id"] for image in board.known("images.json") for tag in image["tags"]}
    assert tags["fieldsight:current"] == tags[second]
    assert tags["fieldsight:previous"] == tags[first]

    back = board.flash("--rollback")
    assert back.returncode == 0, back.stderr
    assert board.runs["image"] == first and board.runs["bundle"].startswith("first-")
    assert board.flash("--rollback").returncode == 0
    assert board.runs["image"] == second


@SLOW
def test_a_third_release_removes_the_first(board, bundles: Bundles) -> None:
    first = board.image(1)
    assert board.flash(bundles[0]).returncode == 0
    second = board.image(2)
    assert board.flash(bundles[1]).returncode == 0
    board.image(3)
    assert board.flash(bundles[1]).returncode == 0
    left = {tag for image in board.known("images.json") for tag in image["tags"]}
    assert first not in left and second in left, "prune keeps current and previous, no more"
    assert len(list((board.home / "releases").iterdir())) == 2
    assert [path.name[:6] for path in (board.home / "bundles").iterdir()] == ["second"]


def test_a_broken_copy_goes_on_where_it_stopped(board, bundles: Bundles) -> None:
    board.image(1)
    rsync = shutil.which("rsync")
    wrapper = board.here.bin / "rsync"
    # As a connection does that breaks: half of the archive is there, rsync ends with an error.
    wrapper.write_text(
        '#!/bin/bash\nif [[ " $* " == *" --append-verify "* ]]; then\n'
        "    archive=${@: -2:1} target=${@: -1}\n    target=${target#*:}\n"
        '    head -c $(($(stat -c %s "$archive") / 2)) "$archive" > "$target"\n    exit 12\nfi\n'
        f'exec {rsync} "$@"\n'
    )
    wrapper.chmod(0o755)
    broken = board.flash(bundles[0])
    assert broken.returncode == 2 and "goes on where it stopped" in broken.stderr
    assert board.runs is None and board.link("current") is None

    stats = board.here.state / "stats"
    wrapper.write_text(f'#!/bin/bash\n{rsync} --stats "$@" | tee -a {stats}\n')
    done = board.flash(bundles[0])
    assert done.returncode == 0, done.stderr
    literal = [line for line in stats.read_text().splitlines() if line.startswith("Literal data")]
    sent = int(literal[0].split()[2].replace(",", ""))
    assert 0.4 * 2_000_000 < sent < 0.6 * 2_000_000, "the whole archive was copied again"
    assert len(board.here.calls("docker", "save")) == 1, "the image was packed again"
    assert board.runs["bundle"].startswith("first-")


@SLOW
def test_an_archive_that_arrives_altered_is_not_loaded(board, bundles: Bundles) -> None:
    board.image(1)
    (board.home / "incoming").mkdir(parents=True)
    short = board.image(1).removeprefix("fieldsight:")
    (board.home / "incoming" / f"{short}.tar.gz").write_bytes(b"x" * 3_000_000)
    done = board.flash(bundles[0])
    assert done.returncode == 3 and "arrived altered" in done.stderr
    assert not board.calls("docker", "load")
    assert board.flash(bundles[0]).returncode == 0


@pytest.mark.parametrize("step", ["doctor", pytest.param("build", marks=SLOW)])
def test_what_ran_goes_on_when_a_step_before_the_start_fails(
    board, bundles: Bundles, step: str
) -> None:
    first = board.image(1)
    assert board.flash(bundles[0]).returncode == 0
    restarts = len(board.calls("systemctl", "restart"))
    board.image(2)
    board.behave(fail=[step])
    done = board.flash(bundles[1])
    assert done.returncode == 3, done.stderr
    assert board.runs["image"] == first and board.runs["bundle"].startswith("first-")
    assert len(board.calls("systemctl", "restart")) == restarts, "the running nodes were disturbed"


def test_nodes_that_do_not_become_healthy_are_rolled_back(board, bundles: Bundles) -> None:
    first = board.image(1)
    assert board.flash(bundles[0]).returncode == 0
    second = board.image(2)
    board.behave(unhealthy=[second])
    done = board.flash(bundles[1])
    assert done.returncode == 3 and "was rolled back" in done.stderr
    assert board.runs["image"] == first and board.runs["bundle"].startswith("first-")
    assert board.link("previous") is None


@SLOW
def test_a_board_that_runs_neither_release_says_so(board, bundles: Bundles) -> None:
    first = board.image(1)
    assert board.flash(bundles[0]).returncode == 0
    board.behave(unhealthy=[first, board.image(2)])
    done = board.flash(bundles[1])
    assert done.returncode == 3 and "does not run either" in done.stderr


@SLOW
def test_a_first_release_that_does_not_run_is_stopped(board, bundles: Bundles) -> None:
    board.behave(unhealthy=[board.image(1)])
    done = board.flash(bundles[0])
    assert done.returncode == 3 and "none before it" in done.stderr
    assert board.runs is None and board.link("current") is None
    assert board.flash("--rollback").returncode == 3


def test_a_dry_run_changes_nothing(board, bundles: Bundles) -> None:
    board.image(1)
    done = board.flash(bundles[0], "--dry-run")
    assert done.returncode == 0 and "would install release" in done.stderr
    assert not board.home.exists() and not board.here.calls("save")
    done = board.flash("--rollback", "--dry-run")
    assert done.returncode == 3 and "no previous release" in done.stderr


@pytest.mark.parametrize(
    ("release", "behaviour", "code", "message"),
    [
        (None, {"architecture": "x86_64"}, 2, "x86_64, expected aarch64"),
        (None, {"free_mb": 500}, 3, "500 MB free for the copy"),
        pytest.param("# R38 (release), REVISION: 2.0,", {}, 2, "no image", marks=SLOW),
        pytest.param(None, {"absent": ["docker"]}, 2, "docker does not answer", marks=SLOW),
        pytest.param("# R35 (release), REVISION: 4.1,", {}, 2, "unknown (L4T R35)", marks=SLOW),
        pytest.param("# R3", {}, 2, "no readable /etc/nv_tegra_release", marks=SLOW),
        ("$(touch pwned) `id`\n" * 99, {}, 2, "no readable /etc/nv_tegra_release"),
    ],
)
def test_a_board_that_does_not_fit_is_left_alone(
    board, bundles: Bundles, release: str | None, behaviour: dict, code: int, message: str
) -> None:
    board.image(1)
    board.behave(**behaviour)
    if release is not None:
        board.release(release)
    done = board.flash(bundles[0])
    assert done.returncode == code and message in done.stderr, done.stderr
    assert not board.home.exists()


def test_wrong_images_bundles_and_hosts(board, bundles: Bundles, tmp_path: Path) -> None:
    board.image(1, architecture="amd64")
    done = board.flash(bundles[0])
    assert done.returncode == 2 and "is for amd64" in done.stderr
    board.image(1, jetpack="7")
    done = board.flash(bundles[0])
    assert done.returncode == 2 and "is for JetPack 7" in done.stderr
    done = board.flash(bundles[0], "--jetpack", "7")
    assert done.returncode == 2 and "has JetPack 6 (L4T 36.4.3), expected 7" in done.stderr

    tampered = tmp_path / "tampered.bundle"
    shutil.copytree(bundles[0], tampered)
    data = bytearray((tampered / "model.onnx").read_bytes())
    data[-1] ^= 1
    (tampered / "model.onnx").write_bytes(data)
    done = board.flash(tampered)
    assert done.returncode == 2 and "model.onnx" in done.stderr
    assert not board.home.exists()

    config = board.config.read_text().splitlines()
    config = ["  Port 1" if line.startswith("  Port") else line for line in config]
    board.config.write_text("\n".join(config))
    done = board.flash("--rollback")
    assert done.returncode == 2 and "cannot log in to 'board'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a bundle"),
        (("a.bundle", "b.bundle"), "too many"),
        (("a.bundle", "--rollback"), "takes no bundle"),
        (("a.bundle", "--jetpack", "5"), "expected 6 or 7"),
        (("a.bundle", "--colour"), "unknown option"),
        (("absent.bundle",), "is not whole"),
    ],
)
def test_wrong_usage(unreachable, arguments: tuple[str, ...], message: str) -> None:
    done = unreachable.flash(*arguments)
    assert done.returncode == 2 and message in done.stderr
