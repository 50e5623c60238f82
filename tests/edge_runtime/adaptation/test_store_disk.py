"""Stored adapters on full disks, beside other writers, and under a writer that is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
from adapters import adapter

from edge_runtime.adaptation import sealed
from edge_runtime.adaptation.store import AdapterStore, StoreError
from edge_runtime.bundle import Bundle


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
