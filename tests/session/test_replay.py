"""From a journal to a state: each event's rule, and what strict reading refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudtask.errors import JournalError, SessionError
from cloudtask.model import Attempt, Result
from cloudtask.session import records
from cloudtask.session.replay import replay, results
from cloudtask.session.state import Counts, SessionState
from cloudtask.states import Ending, JobState
from tests.session.samples import IDENTITY, NOW, UID, bad, end, fold, good, header, run, worker, write


def state_of(*lines: bytes, jobs: int = 4) -> SessionState:
    return fold([header(jobs), run(), *worker(1).splitlines(True), *lines])


def sent(*jobs: int, attempt: int = 1, worker: int = 1) -> bytes:
    return records.sent(worker, [Attempt(job, attempt) for job in jobs], NOW)


def test_a_job_from_pending_to_its_end() -> None:
    assert state_of().state(1) is JobState.PENDING
    state = state_of(sent(1, 2))
    assert state.in_doubt == {1: {Attempt(1, 1): False, Attempt(2, 1): False}}
    assert state.state(1) is JobState.ACTIVE
    state = state_of(sent(1, 2), records.started(1, [(1, 1, 2)], NOW))
    assert state.in_doubt[1] == {Attempt(1, 1): True, Attempt(2, 1): False}
    state = state_of(sent(1, 2), end(good(1), bad(2)))
    assert (state.state(1), state.state(2)) == (JobState.SUCCEEDED, JobState.FAILED)
    assert list(state.settled()) == [(1, "exit 0"), (2, "exit 3")]
    assert not state.in_doubt[1]


def test_counts_are_those_of_the_last_line() -> None:
    state = state_of(sent(1, 2, 3), end(good(1), bad(2), bad(3, ending=Ending.TIMEOUT, value=0)))
    assert state.counts() == Counts(pending=1, timeouts=1, errors=1, ok=1)


def test_an_end_that_does_not_settle_counts_as_a_failure_or_a_loss_or_nothing() -> None:
    ends = [bad(1), bad(1, 2, Ending.SIGNAL, 9), bad(1, 3, Ending.LOST, 0), bad(1, 4, Ending.ABORTED, 0)]
    state = state_of(*[end(result, again=True) for result in ends])
    assert (state.state(1), state.failures[1], state.losses[1], state.attempts[1]) == (JobState.PENDING, 2, 1, 4)


def test_only_started_attempts_are_losses() -> None:
    state = state_of(sent(1, 2), records.started(1, [(1, 1, 1)], NOW), records.lost(1, [Attempt(1, 1), Attempt(2, 1)], "gone", NOW))
    assert list(state.losses[1:3]) == [1, 0]
    assert (state.state(1), state.state(2)) == (JobState.PENDING, JobState.PENDING)


def test_a_returned_attempt_burns_nothing() -> None:
    state = state_of(sent(1), records.returned(1, [Attempt(1, 1)]))
    assert (state.state(1), state.failures[1], state.losses[1], state.attempts[1]) == (JobState.PENDING, 0, 0, 1)


def test_a_job_stays_active_while_another_attempt_holds_it() -> None:
    both = [sent(1), *worker(2).splitlines(True), sent(1, attempt=2, worker=2)]
    assert state_of(*both, records.lost(1, [Attempt(1, 1)], "gone", NOW)).state(1) is JobState.ACTIVE
    assert state_of(*both, end(bad(1), again=True)).state(1) is JobState.ACTIVE
    state = state_of(*both, end(good(1)))
    assert state.state(1) is JobState.SUCCEEDED
    assert state.in_doubt[2] == {Attempt(1, 2): False}, "it still may run there, and must be ended"


@pytest.mark.parametrize("late", [bad(1, 2), bad(1, 2, Ending.SUPERSEDED, 0), bad(1, 2, Ending.LOST, 0)])
def test_what_was_settled_first_stays(late: Result) -> None:
    after = [end(late), sent(1, attempt=3), records.returned(1, [Attempt(1, 3)])]
    state = state_of(sent(1), sent(1, attempt=2), end(good(1)), *after)
    assert (state.state(1), state.outcome(1)) == (JobState.SUCCEEDED, "exit 0")
    state = state_of(end(bad(1)), end(good(1, 2)))
    assert (state.state(1), state.outcome(1)) == (JobState.FAILED, "exit 3")


def test_superseded_never_settles() -> None:
    state = state_of(sent(1), end(bad(1, 1, Ending.SUPERSEDED, 0)))
    assert (state.state(1), state.failures[1]) == (JobState.PENDING, 0)


def test_given_up_jobs_are_called_by_their_name() -> None:
    given_up = records.settled(1, 1, Ending.UNKNOWN, NOW)
    for before in ([], [sent(1)], [sent(1), end(bad(1, ending=Ending.ABORTED, value=0))]):
        state = state_of(*before, given_up)
        assert (state.state(1), state.outcome(1), state.counts().errors) == (JobState.FAILED, "unknown", 1)
        assert not any(state.in_doubt.values())
    assert state_of(end(good(1)), given_up).outcome(1) == "exit 0"


def test_adopted_attempts_are_in_doubt_until_their_end_is_fetched() -> None:
    adopted = records.adopted(1, NOW, running=[Attempt(1, 1)], queued=[Attempt(2, 3)], held=[Attempt(3, 1)], ended=[records.End(good(4))])
    state = state_of(adopted)
    assert state.in_doubt[1] == {Attempt(1, 1): True, Attempt(2, 3): False, Attempt(3, 1): True}
    assert [state.state(job) for job in range(1, 5)] == [JobState.ACTIVE] * 3 + [JobState.SUCCEEDED]
    assert list(state.attempts) == [0, 1, 3, 1, 1]


def test_a_queued_attempt_that_had_started_has_started() -> None:
    state = state_of(records.started(1, [(1, 1, 1)], NOW), records.adopted(1, NOW, queued=[Attempt(1, 1)]))
    assert state.in_doubt[1] == {Attempt(1, 1): True}


def test_a_retry_sets_failed_jobs_back_and_keeps_the_attempts_numbers() -> None:
    ends = [end(good(1)), end(bad(2), again=True), end(bad(2, 2)), records.relayed([1, 2])]
    state = state_of(*ends, run(2, kind="retry", retry=[1, 2]))
    assert (state.state(1), state.state(2)) == (JobState.SUCCEEDED, JobState.PENDING)
    assert (state.outcome(2), state.failures[2], state.relayed[2], state.attempts[2]) == ("", 0, 0, 2)
    state = state_of(*ends, run(2, kind="retry", retry=[2]), end(good(2, 3)))
    assert list(state.unrelayed()) == [2]


def test_what_is_left_to_show() -> None:
    state = state_of(end(good(1), good(2), bad(3), good(4)), records.relayed([4]))
    assert list(state.unrelayed()) == [1, 2], "3 had no output, and 4 was shown"
    assert list(state_of(records.settled(1, 1, Ending.POISON, NOW)).unrelayed()) == []


def test_workers_until_they_are_released() -> None:
    more = [*worker(2).splitlines(True), *worker(5).splitlines(True)[:1], records.setup(2, NOW), records.contact(2, "lost", NOW)]
    state = state_of(*more, records.retired(5, "no", NOW), records.released(1, NOW), records.setup(1, NOW))
    assert sorted(state.workers) == [2, 5] and state.highest_worker == 5
    two, five = state.workers[2], state.workers[5]
    assert (two.ready, two.setup, two.silent, two.identity, two.home) == (True, True, True, IDENTITY, "/root/.cloudtask")
    assert (str(two.address), two.address.slots, two.slots, two.login, two.transport) == ("root@host2:22", 4, 4, "root@h:22", "ssh")
    assert (five.ready, five.retired, five.key) == (False, True, True)
    assert not state_of(*more, records.contact(2, "back", NOW)).workers[2].silent


def test_runs_and_epochs() -> None:
    state = state_of(records.epoch(9), records.finished(1, 3, NOW), jobs=0)
    assert (state.runs, state.epoch, state.exit, state.finished, state.began) == (1, 9, 3, True, NOW + 1)
    state = state_of(records.epoch(9), records.finished(1, 3, NOW), run(2, epoch=10))
    assert (state.runs, state.epoch, state.exit, state.finished, state.began) == (2, 10, 3, False, NOW + 1)


def test_results_are_read_back_from_the_journal(tmp_path: Path) -> None:
    lines = [end(bad(1), again=True), end(bad(1, 2, Ending.SUPERSEDED, 0), good(1, 3), good(2)), end(bad(1, 4))]
    adopted = records.adopted(3, NOW, ended=[records.End(good(4, worker=3))])
    path = write(tmp_path / "j", header(5), run(), *lines, records.settled(3, 0, Ending.POISON, NOW), adopted)
    state = replay(path, strict=True)
    found = {result.job: result for result in results(path, state, [4, 3, 2, 1, 5])}
    assert list(found) == [4, 3, 2, 1]
    assert found[1].attempt == 3 and found[1].span == good(1).span and found[1].seconds == 1.5
    assert (found[3].ending, found[3].span) == (Ending.POISON, None)
    assert found[4].span == good(4, worker=3).span


def test_results_of_one_job_on_one_line(tmp_path: Path) -> None:
    """The first that settles the job counts, as in the fold."""
    ends = [records.End(bad(1), again=True), records.End(good(1, 2)), records.End(bad(1, 3))]
    path = write(tmp_path / "j", header(1), run(), records.ended(1, ends, NOW))
    state = replay(path, strict=True)
    assert state.outcome(1) == "exit 0"
    assert [result.attempt for result in results(path, state, [1])] == [2]


def test_results_of_a_journal_that_changed_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path / "j", header(1), run(), end(good(1)))
    state = replay(path, strict=True)
    write(tmp_path / "j", header(1), run(2), run(3), run(4), end(good(1)))
    with pytest.raises(JournalError, match="result of job 1 is not at byte"):
        list(results(path, state, [1]))


def test_unknown_events_are_for_viewers(tmp_path: Path) -> None:
    optional = records.line({"weather": "fine", "optional": True})
    path = write(tmp_path / "j", header(1), run(), optional, end(good(1)))
    assert replay(path, strict=True).state(1) is JobState.SUCCEEDED
    path = write(tmp_path / "j", header(1), run(), records.line({"weather": "fine", "optional": 1}), end(good(1)))
    assert replay(path, strict=False).state(1) is JobState.SUCCEEDED
    with pytest.raises(JournalError, match=r"line 3: unknown event 'weather'.*newer cloudtask.*2.0"):
        replay(path, strict=True)


def test_unknown_fields_are_passed_over(tmp_path: Path) -> None:
    lines = [line.replace(b'"time":', b'"mood":"good","time":') for line in (header(1), run(), sent(1), end(good(1)))]
    assert replay(write(tmp_path / "j", *lines), strict=True).state(1) is JobState.SUCCEEDED


def test_a_later_format(tmp_path: Path) -> None:
    path = write(tmp_path / "j", header(1).replace(b'"format":1', b'"format":2'), run())
    assert replay(path, strict=False).runs == 1
    with pytest.raises(JournalError, match="format 2, and this cloudtask knows format 1: use a newer one"):
        replay(path, strict=True)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b'{"format":1',
        b'{"format":1}\n',
        run(),
        header(1).replace(UID.encode(), b"../../x"),
        header(1).replace(b'"jobs":1', b'"jobs":-1'),
        header(1).replace(b'"jobs":1', b'"jobs":1e99'),
        header(1).replace(b'"number":1', b'"number":"1"'),
    ],
)
def test_no_header(tmp_path: Path, first: bytes) -> None:
    path = write(tmp_path / "j", first)
    for strict in (True, False):
        with pytest.raises(SessionError, match=f"^{path}[,:]") as caught:
            replay(path, strict=strict)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sent": [[5, 1]], "worker": 1},
        {"sent": [[0, 1]], "worker": 1},
        {"sent": [[-1, 1]], "worker": 1},
        {"sent": [[1, 1 << 40]], "worker": 1},
        {"sent": [[1.5, 1]], "worker": 1},
        {"sent": [["1", 1]], "worker": 1},
        {"sent": [[1]], "worker": 1},
        {"sent": [[1, 1]]},
        {"sent": 7, "worker": 1},
        {"sent": [[1, 1]], "worker": []},
        {"ended": [[1, 1]], "worker": 1},
        {"ended": [{"job": -2, "attempt": 1, "outcome": "exit 0"}], "worker": 1},
        {"ended": [{"job": 1, "attempt": 1, "outcome": 0}], "worker": 1},
        {"settled": -1, "attempt": 0, "outcome": "unknown"},
        {"settled": 9, "attempt": 0, "outcome": "unknown"},
        {"relayed": [[1, 10]]},
        {"relayed": [-1]},
        {"run": 2, "epoch": None, "time": NOW},
        {"run": 2, "epoch": 2, "time": NOW, "retry": [[1, 9]]},
        {"ready": 1, "identity": ["a"], "home": "", "slots": 1, "login": ""},
        {"finished": 1},
    ],
)
def test_known_events_with_impossible_fields_name_their_line(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = write(tmp_path / "j", header(4), run(), worker(1), records.line(wrong), run(2))
    with pytest.raises(JournalError, match=rf"^{path}, line 5: an event '{next(iter(wrong))}' with wrong fields") as caught:
        replay(path, strict=False)
    assert "\n" not in str(caught.value)
