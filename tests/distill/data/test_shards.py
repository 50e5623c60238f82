"""Shards by random access: whole, cut off, damaged and hostile ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.data import shards
from distill.data.images import open_images
from distill.data.shards import ShardImages, build_index, expand
from edge_runtime.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indices are kept in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(value: int, suffix: str = ".png") -> bytes:
    image = np.random.default_rng(value).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, count: int) -> list[tuple[str, bytes]]:
    rows = range(first, first + count)
    return [m for i in rows for m in ((f"{i:04d}.png", picture(i)), (f"{i:04d}.cls", b"%d" % i))]


def test_pictures_and_classes_are_those_that_were_written(tmp_path: Path) -> None:
    write(tmp_path / "a-0000.tar", samples(0, 3))
    write(tmp_path / "a-0001.tar", samples(3, 2))
    images = ShardImages(str(tmp_path / "a-{0000..0001}.tar"))
    assert len(images) == 5 and not images.notes
    for i in (4, 0, 3):  # any order
        expected = cv2.imdecode(np.frombuffer(picture(i), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(images.read(i), expected)
        assert images.label(i) == i and images.name(i).endswith(f":{i:04d}")


def test_keys_end_at_the_first_dot_and_keep_their_folder(tmp_path: Path) -> None:
    members = [("x/a.jpg", picture(1, ".jpg")), ("x/a.cls", b"7"), ("y/a.jpg", picture(2, ".jpg"))]
    members += [("x/b.seg.png", picture(3)), (".hidden", b"")]
    images = ShardImages(str(write(tmp_path / "a.tar", members)))
    assert images.indices[0].names == ["x/a", "y/a"]
    assert [images.label(0), images.label(1)] == [7, None]


def test_the_index_is_kept_until_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = write(tmp_path / "a.tar", samples(0, 3))
    assert len(ShardImages(str(path))) == 3
    with monkeypatch.context() as patch:
        patch.setattr(shards, "build_index", lambda _: pytest.fail("read again"))
        assert ShardImages(str(path)).label(2) == 2
    write(path, samples(0, 5))
    assert len(ShardImages(str(path))) == 5
    for kept in cache.rglob("*.npz"):
        kept.write_bytes(b"PK\x03\x04 no index")
    assert len(ShardImages(str(path))) == 5


@pytest.mark.parametrize("share", [0.3, 0.55, 0.77, 0.9])
def test_of_a_cut_off_shard_what_can_be_read_is_used_and_said(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.tar", samples(0, 20))
    path.write_bytes(path.read_bytes()[: int(build_index(path).offsets[-1] * share)])
    images = ShardImages(str(path))
    assert 1 <= len(images) < 20
    assert len(images.notes) == 1 and "cut off" in images.notes[0]
    for i in range(len(images)):
        assert images.read(i).shape == (8, 10, 3)


def test_a_damaged_header_loses_its_member_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(6)])
    data = bytearray(path.read_bytes())
    at = data.index(b"2.png")
    data[at : at + 300] = bytes(range(256)) + bytes(44)
    path.write_bytes(data)
    images = ShardImages(str(path))
    assert images.indices[0].names == ["0", "1", "3", "4", "5"]
    assert any("damaged before 3.png" in n for n in images.notes)


@pytest.mark.parametrize(
    "content",
    [b"", b"no tar at all" * 100, bytes(10240), picture(0)],
    ids=["empty", "text", "zeros", "a picture"],
)
def test_what_is_no_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no picture in it"):
        ShardImages(str(path))


def test_wrong_classes_links_and_names_that_leave_the_folder_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in [
            ("a.png", picture(0)),
            ("a.cls", b"cat"),
            ("b.png", picture(1)),
            ("b.cls", b"9" * 4000),
            ("../../c.png", picture(2)),
            ("a.jpg", picture(3, ".jpg")),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("secret.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    images = ShardImages(str(path))
    assert images.indices[0].names == ["a", "b", "../../c"]  # names only: nothing is unpacked
    assert images.label(0) is None and images.label(1) is None
    assert sum("expected a class number" in n for n in images.notes) == 2
    assert any("two pictures of the name a" in n for n in images.notes)


def test_corrupt_members_are_replaced_counted_and_named(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", picture(i, ".jpg")) for i in range(6)]
    members[2] = ("2.jpg", members[2][1][:100])
    members[5] = ("5.jpg", b"")
    images = open_images([str(write(tmp_path / "a.tar", members))])
    assert np.array_equal(images.read(2), images.read(3))
    assert np.array_equal(images.read(5), images.read(0))
    (said,) = images.problems()
    assert said.startswith("2 of 6 images cannot be decoded") and "a.tar:2" in said


def test_where_no_member_can_be_decoded_it_is_an_error(tmp_path: Path) -> None:
    images = open_images([str(write(tmp_path / "a.tar", [("a.jpg", b"x"), ("b.jpg", b"y")]))])
    with pytest.raises(InputError, match="none of 2 images"):
        images.read(1)


def test_patterns(tmp_path: Path) -> None:
    for name in ("a-00.tar", "a-01.tar", "b-00.tar"):
        write(tmp_path / name, samples(0, 1))
    names = [p.name for p in expand(str(tmp_path / "{a,b}-*.tar"))]
    assert names == ["a-00.tar", "a-01.tar", "b-00.tar"]
    with pytest.raises(InputError, match=r"a-02\.tar: no such shard"):
        expand(str(tmp_path / "a-{00..02}.tar"))
    with pytest.raises(InputError, match="no shard fits"):
        expand(str(tmp_path / "c-*.tar"))
    with pytest.raises(InputError, match=r"unpack it to \.tar"):
        expand(str(tmp_path / "a-00.tar.gz"))
