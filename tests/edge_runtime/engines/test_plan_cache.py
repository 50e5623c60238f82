from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.engines import plan_cache
from edge_runtime.engines.plan_cache import PlanCache, PlanKey, default_folder
from edge_runtime.errors import InputError

PLAN = bytes(range(256)) * 20
KEY = PlanKey(
    model_sha256="a" * 64,
    precision="fp16",
    tensorrt="10.3.0",
    gpu="Orin",
    capability="8.7",
    workspace_mib=1024,
    optimization_level=3,
)


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "cache")


def test_what_is_stored_is_loaded(cache: PlanCache) -> None:
    assert cache.load(KEY) is None
    path = cache.store(KEY, PLAN)
    assert cache.load(KEY) == PLAN
    assert path.stat().st_mode & 0o777 == 0o600 and cache.folder.stat().st_mode & 0o777 == 0o700
    assert [path] == list(cache.folder.iterdir()), "nothing temporary is left"


def test_the_header_says_what_the_plan_was_built_from_and_with(cache: PlanCache) -> None:
    raw = cache.store(KEY, PLAN).read_bytes()
    length = int.from_bytes(raw[40:44], "little")
    header = json.loads(raw[44 : 44 + length])
    assert header["key"] == KEY.model_dump() and header["kind"] == "plan"
    assert header["sha256"] == hashlib.sha256(PLAN).hexdigest() and header["size"] == len(PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "b" * 64},
        {"precision": "int8"},
        {"tensorrt": "10.3.1"},
        {"gpu": "Orin Nano"},
        {"capability": "8.6"},
        {"workspace_mib": 512},
        {"optimization_level": 5},
        {"dla_core": 0},
    ],
)
def test_everything_a_plan_depends_on_is_in_its_key(
    cache: PlanCache, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    other = KEY.model_copy(update=change)
    path = cache.store(KEY, PLAN)
    assert cache.path(other) != path and cache.load(other) is None
    path.rename(cache.path(other))  # someone put it in the other's place
    assert cache.load(other) is None
    name, value = next(iter(change.items()))
    assert f"it is stale: {name} is {getattr(KEY, name)!r}, expected {value!r}" in caplog.text


def test_a_timing_cache_is_no_plan(cache: PlanCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.store(KEY, PLAN, "timing").rename(cache.path(KEY))
    assert cache.load(KEY) is None
    assert "kind is 'timing', expected 'plan'" in caplog.text


def test_every_cut_and_every_altered_byte_is_found_out(cache: PlanCache) -> None:
    path = cache.store(KEY, PLAN)
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - len(PLAN) + 2), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert cache.load(KEY) is None, f"cut to {size} bytes"
    for place in [*range(len(whole) - len(PLAN)), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert cache.load(KEY) is None, f"bit {place % 8} of byte {place}"
    path.write_bytes(whole + b"more")
    assert cache.load(KEY) is None
    path.write_bytes(whole)
    assert cache.load(KEY) == PLAN


def forged(header: Any, content: bytes = PLAN) -> bytes:
    """A file whose header has the right checksum, whatever it says."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = b"FSPLAN1\n" + hashlib.sha256(raw).digest() + len(raw).to_bytes(4, "little")
    return start + raw + content


GOOD: dict[str, Any] = {
    "kind": "plan",
    "key": KEY.model_dump(),
    "created": "today",
    "sha256": hashlib.sha256(PLAN).hexdigest(),
    "size": len(PLAN),
}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (forged(b"not json"), "Invalid JSON"),
        (forged(b"\xff\xfe" * 9), "its header"),
        (forged(b"[" * 60000), "its header"),
        (forged([]), "its header"),
        (forged({**GOOD, "size": -1}), "size"),
        (forged({**GOOD, "size": "5120"}), "size"),
        (forged({**GOOD, "more": 1}), "unknown key 'more'"),
        (forged({**GOOD, "sha256": "../../etc/passwd"}), "sha256"),
        (forged({**GOOD, "size": 10**30}), "of content, expected 1000"),
        (forged({**GOOD, "size": 5}), r"has 5120 bytes of content, expected 5"),
        (forged({**GOOD, "sha256": "0" * 64}), "its content was altered"),
        (forged(b" " * 70000 + json.dumps(GOOD).encode()), "header is cut short"),
        (b"FSPLAN1\n" + b"\xff" * 36, "header is cut short"),
        (b"FSPLAN2\n" + b"\0" * 99, "no plan of this version"),
        (b"", "no plan of this version"),
    ],
)
def test_hostile_content_is_refused_with_its_reason(
    cache: PlanCache, content: bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store(KEY, PLAN).write_bytes(content)
    assert cache.load(KEY) is None
    assert says in caplog.text and str(cache.path(KEY)) in caplog.text


def test_the_forger_of_these_tests_can_write_a_good_file(cache: PlanCache) -> None:
    cache.store(KEY, PLAN).write_bytes(forged(GOOD))
    assert cache.load(KEY) == PLAN


def test_only_a_plain_file_of_this_user_is_read(
    cache: PlanCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    path = cache.store(KEY, PLAN)
    aside = tmp_path / "aside"
    path.rename(aside)
    path.symlink_to(aside)
    assert cache.load(KEY) is None
    path.unlink()
    os.mkfifo(path)
    assert cache.load(KEY) is None, "and does not wait for a writer"
    path.unlink()
    path.mkdir()
    assert cache.load(KEY) is None
    path.rmdir()
    aside.rename(path)
    path.chmod(0o666)
    assert cache.load(KEY) is None
    path.chmod(0o600)
    assert cache.load(KEY) == PLAN
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(plan_cache.os, "getuid", lambda: 54321)
    assert cache.load(KEY) is None
    assert "another user could have written it" in caplog.text


def test_a_huge_file_is_not_read(cache: PlanCache, caplog: pytest.LogCaptureFixture) -> None:
    path = cache.store(KEY, PLAN)
    with open(path, "r+b") as file:
        file.truncate(5 << 30)  # sparse
    assert cache.load(KEY) is None
    assert "more than any plan" in caplog.text


def test_setting_aside_takes_a_plan_out_of_use_and_keeps_it(cache: PlanCache) -> None:
    assert cache.set_aside(KEY) is None
    whole = cache.store(KEY, PLAN).read_bytes()
    aside = cache.set_aside(KEY)
    assert aside is not None and aside.read_bytes() == whole and aside.suffix == ".rejected"
    assert cache.load(KEY) is None


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIELDSIGHT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/robot")
    assert default_folder() == Path("/home/robot/.cache/fieldsight/tensorrt")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_folder() == Path("/var/cache/fieldsight/tensorrt")
    monkeypatch.setenv("FIELDSIGHT_CACHE", "~/plans")
    assert default_folder() == Path("/home/robot/plans/tensorrt")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIELDSIGHT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(InputError, match="set FIELDSIGHT_CACHE"):
        default_folder()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = PlanCache(tmp_path / "file" / "cache")
    for attempt in (lambda: cache.store(KEY, PLAN), lambda: cache.lock(KEY).__enter__()):
        with pytest.raises(InputError, match=r"file/cache cannot be written.*FIELDSIGHT_CACHE"):
            attempt()
    assert cache.load(KEY) is None


def _build_slowly(folder: Path, barrier: Any, builds: Any) -> None:
    cache = PlanCache(folder)
    barrier.wait()
    with cache.lock(KEY):
        if cache.load(KEY) is None:
            with builds.get_lock():
                builds.value += 1
            cache.store(KEY, PLAN)


def test_of_many_processes_one_builds_and_the_others_wait(cache: PlanCache) -> None:
    context = multiprocessing.get_context("fork")
    barrier, builds = context.Barrier(4), context.Value("i", 0)
    workers = [
        context.Process(target=_build_slowly, args=(cache.folder, barrier, builds))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert builds.value == 1
    assert cache.load(KEY) == PLAN


def _store_again_and_again(folder: Path, content: bytes) -> None:
    for _ in range(50):
        PlanCache(folder).store(KEY, content)


def test_writers_without_a_lock_still_leave_one_whole_plan(cache: PlanCache) -> None:
    context = multiprocessing.get_context("fork")
    contents = [bytes([n]) * 100_000 for n in range(2)]
    writers = [
        context.Process(target=_store_again_and_again, args=(cache.folder, content))
        for content in contents
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(cache.load(KEY))
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen - {None} <= set(contents) and cache.load(KEY) in contents


def test_who_waits_for_another_process_says_so(
    cache: PlanCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    context = multiprocessing.get_context("fork")
    held, go = context.Event(), context.Event()

    def hold() -> None:
        with cache.lock(KEY):
            held.set()
            go.wait(60)

    holder = context.Process(target=hold)
    holder.start()
    assert held.wait(60)

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            go.set()

    handler = Release()
    plan_cache.log.addHandler(handler)
    try:
        with cache.lock(KEY):
            pass
    finally:
        plan_cache.log.removeHandler(handler)
        go.set()
        holder.join(60)
    assert "another process builds the same plan; waiting for it" in caplog.text
