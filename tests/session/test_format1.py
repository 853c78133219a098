"""A session of format 1, written by the first version that could and kept as it was: it must open for ever."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cloudtask.model import Address, Attempt
from cloudtask.session import records
from cloudtask.session.replay import replay, results
from cloudtask.session.session import Session
from cloudtask.session.state import Counts, SessionState
from cloudtask.states import JobState
from tests.session.samples import NOW

KEPT = Path(__file__).parent.parent / "data" / "format1"


@pytest.fixture
def sessions(tmp_path: Path) -> str:
    """A sessions directory that holds a copy of it as number 1."""
    shutil.copytree(KEPT, tmp_path / "1")
    return str(tmp_path)


def check(state: SessionState) -> None:
    assert state.header == ("1-2c2b445a6231", 1, 6, "words", NOW, "1.0.0a1")
    assert list(state.settled()) == [(1, "exit 0"), (2, "exit 0"), (6, "timeout")]
    assert [state.state(job) for job in (3, 4, 5)] == [JobState.PENDING, JobState.ACTIVE, JobState.PENDING]
    assert state.counts() == Counts(pending=3, timeouts=1, errors=0, ok=2)
    assert list(state.attempts) == [0, 1, 3, 1, 2, 1, 1]
    assert list(state.failures) == [0, 0, 0, 0, 0, 0, 1]
    assert {worker: held for worker, held in state.in_doubt.items() if held} == {3: {Attempt(4, 2): False}}
    assert (state.epoch, state.runs, state.exit, state.finished, state.began) == (6, 3, 3, False, NOW)
    assert (sorted(state.workers), state.highest_worker) == ([2, 3], 3)
    assert state.workers[2].address == Address(host="host2") and state.workers[2].identity is not None
    assert state.workers[3].address.local and not state.workers[3].setup
    assert list(state.unrelayed()) == [2, 6]


def test_a_viewer_reads_it_where_it_is() -> None:
    check(replay(str(KEPT / "journal.jsonl"), strict=False))


def test_a_resume_opens_it(sessions: str) -> None:
    with Session.open(sessions, "last") as session:
        check(session.state)
        assert session.cut == 30
        assert session.jobs() == [b"10 'a b'", b"20", b"\xff30", b"20", b"50", b"60"]
        values, sources = session.conf()
        assert values["command"] == ["convert", "{}"] and values["timeout"] == 3600.0
        assert os.fsencode(values["env"][0]) == b"LANG=\xff" and sources["split"] == "CLOUDTASK_SPLIT"
        session.append(records.finished(3, 3, NOW))
    assert replay(session.paths.journal, strict=True).finished


def test_its_output_is_where_the_journal_says() -> None:
    path = str(KEPT / "journal.jsonl")
    shown = {}
    for result in results(path, replay(path, strict=True), range(1, 7)):
        assert result.span is not None
        data = (KEPT / result.span.file).read_bytes()[result.span.offset :]
        shown[result.job] = (data[: result.span.out], data[result.span.out :][: result.span.err], result.describe(), result.began)
    assert shown[1] == (b"one\n", b"", "exit 0", NOW + 3)
    assert shown[2] == (b"two\n", b"noise\n", "exit 0", NOW + 101)
    assert shown[6] == (b"six\n", b"", "timeout", NOW + 25)
