"""Stored adapters: kept whole, in order, and nothing else is ever believed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapters import adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.adaptation.store import AdapterStore
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.manifest import FileSpec


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
