"""Stored adapters: kept whole, in order, and nothing else is ever believed."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.adaptation import sealed
from edge_runtime.adaptation.store import AdapterStore, StoreError
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.manifest import FileSpec


def adapter(value: float) -> np.ndarray:
    return np.full(6, value, np.float32)


@pytest.fixture
def store(tmp_path: Path, adaptive_bundle: Bundle) -> AdapterStore:
    return AdapterStore(tmp_path / "state", adaptive_bundle, keep=3)


def test_an_adapter_comes_back_as_it_was(store: AdapterStore) -> None:
    values = np.random.default_rng(0).normal(size=6).astype(np.float32)
    version = store.save(values, {"why": "dusk", "gain": np.float32(0.5), "seen": np.arange(2)})
    loaded = store.load()
    assert loaded is not None and version == loaded.version == 1
    assert loaded.adapter.dtype == np.float32 and (loaded.adapter == values).all()
    assert loaded.note == {"why": "dusk", "gain": 0.5, "seen": [0, 1]}
    assert loaded.path.read_text().splitlines()[1].startswith("{")


def test_the_last_few_are_kept_in_order(store: AdapterStore, adaptive_bundle: Bundle) -> None:
    assert store.load() is None and store.versions() == []
    for value in range(1, 6):
        store.save(adapter(value))
    again = AdapterStore(store.folder.parent, adaptive_bundle, keep=3)
    assert [s.version for s in again.versions()] == [3, 4, 5]
    assert [s.adapter[0] for s in again.versions()] == [3, 4, 5]
    middle = again.load(4)
    assert middle is not None and middle.adapter[0] == 4
    assert again.load(1) is None


def test_a_clock_that_jumps_back_changes_no_order(store: AdapterStore) -> None:
    for value in (1, 2):
        store.save(adapter(value))
    os.utime(store._files.path(2), (0, 0))
    os.utime(store._files.path(1), (2e9, 2e9))
    newest = store.load()
    assert newest is not None and newest.version == 2
    assert store.save(adapter(3)) == 3


def test_a_number_is_not_given_twice(store: AdapterStore) -> None:
    store.save(adapter(1))
    store.save(adapter(2))
    store._files.path(2).write_bytes(b"")
    assert store.load().version == 1  # type: ignore[union-attr]
    assert store.save(adapter(3)) == 3


@pytest.mark.parametrize("wrong", [np.zeros(5), np.zeros((6, 1)), [0, 0, 0, 0, 0, np.nan]])
def test_what_is_no_adapter_is_not_saved(store: AdapterStore, wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected \(6,\) and finite"):
        store.save(wrong)
    with pytest.raises(InputError, match="plain values"):
        store.save(adapter(1), {"x": object()})
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(InputError, match="plain values"):
        store.save(adapter(1), loop)
    assert store.versions() == []


def resealed(text: str) -> bytes:
    """What a stranger could write: any content under a checksum that fits."""
    raw = text.encode()
    return f"FIELDSIGHT-ADAPTER-1 {hashlib.sha256(raw).hexdigest()}\n".encode() + raw


def changed(**fields: object) -> Callable[[bytes], bytes]:
    """A whole file with other fields."""

    def change(data: bytes) -> bytes:
        content = json.loads(data.partition(b"\n")[2])
        return resealed(json.dumps({**content, **fields}))

    return change


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[:-10],
    "cut off at the first line": lambda data: data[:40],
    "one bit": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "zeros, as after a loss of power": lambda data: bytes(len(data)),
    "another kind": lambda data: data.replace(b"ADAPTER", b"PLACES ", 1),
    "a newer kind": lambda data: data.replace(b"ADAPTER-1", b"ADAPTER-2", 1),
    "binary": lambda data: bytes(range(256)) * 10,
    "not JSON": lambda data: resealed("adapter"),
    "nested without end": lambda data: resealed("[" * 100_000),
    "a nested note": lambda data: resealed(
        data.partition(b"\n")[2].decode().replace("{}", '{"a":' * 5000 + "1" + "}" * 5000)
    ),
    "another network": changed(model_sha256="0" * 64),
    "too short": changed(adapter=[1.0] * 5),
    "too long": changed(adapter=[1.0] * 7),
    "not finite": changed(adapter=[1.0] * 5 + [float("nan")]),
    "beyond float32": changed(adapter=[1.0] * 5 + [1e300]),
    "a huge number": changed(adapter=[1.0] * 5 + [int("1" + "0" * 4000)]),
    "text for numbers": changed(adapter=["1.0"] * 6),
    "unknown key": changed(code="import os"),
    "too large": lambda data: data + b" " * (17 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_named_set_aside_and_never_used(
    store: AdapterStore, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(adapter(1))
    store.save(adapter(2))
    path = store._files.path(2)
    path.write_bytes(HOSTILE[name](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        loaded = store.load()
    assert loaded is not None and loaded.version == 1 and loaded.adapter[0] == 1
    assert not path.exists() and path.with_suffix(".rejected").exists()
    assert path.name in caplog.text and "not used" in caplog.text
    assert [s.version for s in store.versions()] == [1]


def test_links_pipes_and_folders_are_not_read(store: AdapterStore, tmp_path: Path) -> None:
    store.save(adapter(1))
    (tmp_path / "elsewhere").write_bytes(store._files.path(1).read_bytes())
    store._files.path(2).symlink_to(tmp_path / "elsewhere")
    os.mkfifo(store._files.path(3))
    store._files.path(4).mkdir()
    store._files.path(5).symlink_to("/dev/zero")
    assert [s.version for s in store.versions()] == [1]
    assert (tmp_path / "elsewhere").exists()
    assert store.save(adapter(6)) == 6


def test_strange_names_in_the_folder_change_nothing(store: AdapterStore) -> None:
    store.save(adapter(1))
    for name in ("adapter-999999999.json", "adapter-1.json", "adapter-x.json", "notes.txt"):
        (store.folder / name).write_bytes(store._files.path(1).read_bytes())
    assert store.save(adapter(2)) == 2
    assert [s.version for s in store.versions()] == [1, 2]


def test_rejected_files_do_not_pile_up(store: AdapterStore) -> None:
    for value in range(10):
        version = store.save(adapter(value))
        store._files.path(version).write_bytes(b"rubbish")
        assert store.load() is None
    assert len(list(store.folder.glob("*.rejected"))) <= 4


def test_each_network_has_its_own(store: AdapterStore, adaptive_bundle: Bundle) -> None:
    store.save(adapter(1))
    manifest = adaptive_bundle.manifest
    files = {**manifest.files, "model.onnx": FileSpec(sha256="f" * 64, bytes=1)}
    other = dataclasses.replace(
        adaptive_bundle, manifest=manifest.model_copy(update={"files": files})
    )
    strange = AdapterStore(store.folder.parent, other)
    assert strange.load() is None
    strange.save(adapter(2))
    assert store.load().adapter[0] == 1  # type: ignore[union-attr]
    os.replace(strange._files.path(1), store._files.path(2))
    assert store.load().version == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said_and_loses_nothing(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.save(adapter(1))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(StoreError, match="No space left on device.*make room"):
            store.save(adapter(2))
    assert [s.version for s in store.versions()] == [1]
    assert not list(store.folder.glob("*.tmp"))
    assert store.save(adapter(2)) == 2


def test_a_really_full_file_system(tmp_path: Path, adaptive_bundle: Bundle) -> None:
    """A process that may write no more than 100 bytes to a file: EFBIG from the kernel."""
    store = AdapterStore(tmp_path / "state", adaptive_bundle)
    store.save(adapter(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot keep what was learnt"):
            store.save(adapter(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.save(adapter(2)) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path, adaptive_bundle: Bundle) -> None:
    (tmp_path / "file").write_text("in the way")
    store = AdapterStore(tmp_path / "file" / "state", adaptive_bundle)
    assert store.load() is None and store.versions() == []
    with pytest.raises(StoreError, match="Not a directory"):
        store.save(adapter(1))


def test_another_writer_that_does_not_let_go(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(adapter(1))
    monkeypatch.setattr(sealed, "_WAIT_S", 0.0)
    with open(store.folder / ".adapter.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process"):
            store.save(adapter(2))
    assert store.save(adapter(2)) == 2


def test_an_older_writers_leavings_are_swept(store: AdapterStore) -> None:
    store.save(adapter(1))
    (store.folder / ".adapter-000000002.json.abc.tmp").write_bytes(b"half")
    store.save(adapter(2))
    assert sorted(p.name for p in store.folder.glob(".*")) == [".adapter.lock"]


def kill_while_storing(
    writers, folder: Path, bundle: Bundle, kills: int, seed: int = 0
) -> list[int]:
    """Kill a writer again and again; after each, the newest complete version must be found."""
    rng = random.Random(seed)
    found = []
    for _ in range(kills):
        pid = writers.start("store", folder, bundle.path)
        first = int(writers.line())
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, 9)
        said = [first, *map(int, writers.reap())]
        newest = AdapterStore(folder, bundle).load()
        assert newest is not None
        # the one being reported when the signal came may be complete but not reported
        assert newest.version in (said[-1], said[-1] + 1)
        assert (newest.adapter == newest.version).all()
        assert newest.note == {"version": newest.version}
        found.append(newest.version)
    assert found == sorted(set(found))
    assert not list(Path(folder).rglob("*.rejected"))
    return found


def test_15_kills_lose_nothing(writers, tmp_path: Path, adaptive_bundle: Bundle) -> None:
    kill_while_storing(writers, tmp_path / "state", adaptive_bundle, 15)


@pytest.mark.slow
def test_100_kills_lose_nothing(writers, tmp_path: Path, adaptive_bundle: Bundle) -> None:
    kill_while_storing(writers, tmp_path / "state", adaptive_bundle, 100, seed=1)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(
        st.one_of(
            st.floats(-1e6, 1e6, width=32).map(lambda v: ("save", v)),
            st.tuples(st.just("spoil"), st.binary(max_size=50)),
            st.just(("cut", 0)),
        ),
        max_size=12,
    )
)
def test_whatever_happens_to_files_the_newest_whole_one_is_loaded(
    steps, tmp_path_factory: pytest.TempPathFactory, adaptive_bundle: Bundle
) -> None:
    """A model of the store: a dictionary of the versions that were not spoilt."""
    store = AdapterStore(tmp_path_factory.mktemp("model"), adaptive_bundle, keep=3)
    whole: dict[int, float] = {}
    given_out = 0
    for what, value in steps:
        if what == "save":
            version = store.save(np.full(6, value))
            assert version > given_out
            given_out = version
            whole[version] = float(np.float32(value))
            whole = dict(sorted(whole.items())[-3:])
        elif whole:
            newest = max(whole)
            path = store._files.path(newest)
            path.write_bytes(value if what == "spoil" else path.read_bytes()[:-1])
            del whole[newest]
        loaded = store.load()
        if whole:
            assert loaded is not None and loaded.version == max(whole)
            assert (loaded.adapter == whole[max(whole)]).all()
        else:
            assert loaded is None
