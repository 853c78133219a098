"""The logs of a worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloudtask.errors import StorageError
from cloudtask.workers.worker_log import Segment, WorkerLog, add_segment


@pytest.fixture
def session(tmp_path: Path) -> Path:
    (tmp_path / "workers").mkdir()
    return tmp_path


def test_status_lines_stand_on_lines_of_their_own(session: Path) -> None:
    log = WorkerLog(str(session), 3, "host:22")
    log.status(1, "echo hi")
    log.output(1, b"no newline")
    log.status(1, "exit 0 # echo hi")
    log.flush()
    lines = (session / "workers/3.log").read_text().splitlines()
    assert [line.partition("] ")[2] or line for line in lines] == ["echo hi", "no newline", "exit 0 # echo hi"]
    assert lines[0].startswith("# 20") and "[host:22]" in lines[0]


def test_offsets_are_those_in_the_file_also_after_it_was_opened_again(session: Path) -> None:
    first = WorkerLog(str(session), 1, "a")
    first.output(1, b"before\n")
    first.flush()
    log = WorkerLog(str(session), 1, "a")
    file, offset = log.output(1, b"hello")
    log.flush()
    assert (session / file).read_bytes()[offset : offset + 5] == b"hello"


def test_slots_have_logs_of_their_own(session: Path) -> None:
    log = WorkerLog(str(session), 1, "a")
    log.slots = 2
    assert log.output(2, b"x")[0] == "workers/1.2.log"
    assert log.name_of(0) == "workers/1.log"


def test_scattered_output_is_listed_in_the_index(session: Path) -> None:
    log = WorkerLog(str(session), 1, "a")
    segments: list[Segment] = []
    for stream, data in ((1, b"out"), (2, b"err"), (1, b"more")):
        add_segment(segments, stream, log.output(1, data)[1], len(data))
    span = log.span("workers/1.log", segments, (7, 1))
    log.flush()
    assert (span.out, span.err) == (7, 3)
    line = (session / "workers/1.index").read_bytes()[span.listing :].splitlines()[0]
    assert json.loads(line)["segments"] == [list(segment) for segment in segments]


def test_output_then_errors_need_no_index(session: Path) -> None:
    log = WorkerLog(str(session), 1, "a")
    segments: list[Segment] = []
    for stream, data in ((1, b"out"), (1, b"put"), (2, b"err")):
        add_segment(segments, stream, log.output(1, data)[1], len(data))
    assert log.span("workers/1.log", segments, (7, 1)) == ("workers/1.log", 0, 6, 3, -1)


def test_a_symbolic_link_is_not_followed(session: Path) -> None:
    (session / "workers/1.log").symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match=r"1\.log"):
        WorkerLog(str(session), 1, "a").output(1, b"x")
