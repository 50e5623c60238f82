"""The record of decisions: readable after a crash, bounded, and never in the way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.adaptation.decisions import DecisionLog, read_decisions
from edge_runtime.errors import InputError


def test_decisions_come_back_with_their_numbers(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "logs" / "decisions.jsonl")
    log.write("judge", 7, promote=False, numbers={"distance": np.float32(0.5), "x": float("nan")})
    log.write("alarm", 8, reasons=("a", "b"), adapter=np.ones(2))
    first, second = read_decisions(tmp_path / "logs" / "decisions.jsonl")
    assert first["numbers"] == {"distance": 0.5, "x": None} and first["frame"] == 7
    assert second["reasons"] == ["a", "b"] and second["adapter"] == [1, 1]
    assert list(log.recent) == [first, second]


def test_a_line_cut_off_by_a_crash_spoils_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "decisions.jsonl"
    DecisionLog(path).write("judge", 1)
    DecisionLog(path).write("judge", 2)
    path.write_bytes(path.read_bytes()[:-9])
    DecisionLog(path).write("judge", 3)
    assert [record["frame"] for record in read_decisions(path)] == [1, 3]
    assert "1 lines are no decisions" in caplog.text


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b"[1]", b'"text"', b"[" * 100_000, b"{}}", b"\0" * 50, b"null"]
)
def test_lines_that_are_no_decisions_are_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "decisions.jsonl"
    DecisionLog(path).write("judge", 1)
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert [record["frame"] for record in read_decisions(path)] == [1]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(read_decisions(tmp_path / "none.jsonl"))


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, most_bytes=2000)
    for frame in range(200):
        log.write("judge", frame)
    assert {p.name for p in tmp_path.iterdir()} <= {path.name, f"{path.name}.1"}
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 4500
    latest = [json.loads(x)["frame"] for x in (tmp_path / f"{path.name}.1").open()]
    assert latest == list(range(latest[0], latest[-1] + 1))
    assert len(log.recent) == 100


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    log = DecisionLog(tmp_path / "file" / "decisions.jsonl")
    with caplog.at_level(logging.WARNING):
        for frame in range(3):
            log.write("judge", frame)
    assert log.lost == 3 and len(log.recent) == 3
    assert caplog.text.count("not recorded") == 1


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "decisions.jsonl").symlink_to(tmp_path / "target")
    DecisionLog(tmp_path / "decisions.jsonl").write("judge", 1)
    assert (tmp_path / "target").read_text() == "precious"
