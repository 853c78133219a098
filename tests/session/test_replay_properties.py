"""Replay is a pure fold: any valid journal, cut anywhere, rolled back anywhere, or with anything written into it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.errors import JournalError
from cloudtask.session import journal, records
from cloudtask.session.replay import replay, results
from cloudtask.session.state import SessionState
from cloudtask.states import JobState
from tests.session.samples import Pretender, fold, pretenders, snapshot

TORN = st.sampled_from([b"", b'{"sent":[[1,1]],"wor', b"\0" * 100, b"\0" * 4096 + b"\n", b"}\n", b"\xff\xfe"])


def whole_lines(pretender: Pretender) -> list[bytes]:
    return b"".join(pretender.lines).splitlines(True)


def replayed(data: bytes, *, strict: bool = True) -> SessionState:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_bytes(data)
        return replay(str(path), strict=strict)


def assert_consistent(state: SessionState) -> None:
    """What must hold after any number of records."""
    held = [attempt for attempts in state.in_doubt.values() for attempt in attempts]
    for job in range(1, state.header.jobs + 1):
        under_way = [attempt for attempt in held if attempt.job == job]
        settled = state.state(job) in (JobState.SUCCEEDED, JobState.FAILED)
        assert settled == bool(state.outcome(job)) == bool(state.where[job])
        assert (state.state(job) is JobState.SUCCEEDED) == (state.outcome(job) == "exit 0")
        assert settled or (state.state(job) is JobState.ACTIVE) == bool(under_way)
        assert state.attempts[job] >= max((attempt.number for attempt in under_way), default=0)
    counts = state.counts()
    assert sum(counts) == state.header.jobs and min(counts) >= 0
    assert set(state.unrelayed()) <= {job for job, _ in state.settled()}


@given(pretenders())
def test_the_state_is_what_the_engine_meant(pretender: Pretender) -> None:
    state = replayed(b"".join(pretender.lines))
    assert [state.state(job) for job in range(1, pretender.jobs + 1)] == [pretender.expected(job) for job in range(1, pretender.jobs + 1)]
    assert dict(state.settled()) == pretender.settled
    assert {a: (w, started) for w, attempts in state.in_doubt.items() for a, started in attempts.items()} == pretender.held
    assert {job: number for job, number in enumerate(state.attempts) if number} == pretender.attempts
    assert (state.runs, sorted(state.workers)) == (pretender.runs, list(range(1, pretender.workers + 1)))


@given(pretenders(), st.data())
def test_cut_at_any_byte_it_is_the_state_of_the_whole_lines_before(pretender: Pretender, data: st.DataObject) -> None:
    journal_bytes = b"".join(pretender.lines)
    cut = data.draw(st.integers(len(pretender.lines[0]), len(journal_bytes)))
    kept = journal_bytes[:cut]
    state = replayed(kept + data.draw(TORN) if kept.endswith(b"\n") else kept)
    whole = kept[: kept.rindex(b"\n") + 1]
    assert snapshot(state) == snapshot(fold(whole.splitlines(True)))
    assert state.end == len(whole)
    assert_consistent(state)


@given(pretenders())
def test_every_rollback_is_consistent_and_can_be_followed_by_the_rest(pretender: Pretender) -> None:
    """Agents know more than a journal that lost records: their news must find a state that takes it."""
    lines = whole_lines(pretender)
    for kept in range(1, len(lines) + 1):
        assert_consistent(fold(lines[:kept]))
    for missing in range(1, len(lines)):
        assert_consistent(fold(lines[:missing] + lines[missing + 1 :]))


@given(pretenders(), st.data())
def test_unknown_events_change_nothing_for_a_viewer(pretender: Pretender, data: st.DataObject) -> None:
    lines = whole_lines(pretender)
    place = data.draw(st.integers(1, len(lines)))
    strange = records.line({"weather": data.draw(st.text()), "sent": [[99, 1]]})
    seen = replayed(b"".join([*lines[:place], strange, *lines[place:]]), strict=False)
    expected = fold(lines)
    assert list(seen.settled()) == list(expected.settled())
    assert (seen.in_doubt, seen.workers, seen.counts()) == (expected.in_doubt, expected.workers, expected.counts())


@given(pretenders(), st.data())
def test_garbage_in_the_middle_names_its_line(pretender: Pretender, data: st.DataObject) -> None:
    lines = whole_lines(pretender)
    place = data.draw(st.integers(1, len(lines) - 1))
    garbage = data.draw(st.binary().filter(lambda raw: b"\n" not in raw)) + b"\n"
    if journal.parse(garbage) is None:
        with pytest.raises(JournalError, match=f"line {place + 1}: not a journal record"):
            replayed(b"".join([*lines[:place], garbage, *lines[place:]]), strict=False)


@given(pretenders(), st.data())
def test_a_flipped_byte_is_an_error_with_a_line_or_harmless_never_a_traceback(pretender: Pretender, data: st.DataObject) -> None:
    raw = bytearray(b"".join(pretender.lines))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    try:
        replayed(bytes(raw))
    except JournalError as error:
        assert "journal.jsonl" in str(error) and "\n" not in str(error)


@given(pretenders())
def test_each_settled_job_has_the_result_that_settled_it(pretender: Pretender) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_bytes(b"".join(pretender.lines))
        state = replay(str(path), strict=True)
        found = {result.job: result for result in results(str(path), state, range(1, pretender.jobs + 1))}
    assert sorted(found) == sorted(pretender.settled)
    for job, outcome in pretender.settled.items():
        assert outcome in (found[job].describe(), "unknown")
        assert found[job].succeeded == (outcome == "exit 0")
