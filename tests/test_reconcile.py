"""The journal against an agent's inventory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudtask.model import Attempt, Result
from cloudtask.reconcile import reconcile
from cloudtask.states import Ending
from cloudtask.workers.messages import Row

STATES = ["queued", "running", "ended", "acked", "lost"]


def rows(given: dict[Attempt, str]) -> list[Row]:
    return [Row(a, s, Result(*a, Ending.EXIT) if s in ("ended", "acked") else None) for a, s in given.items()]


attempts = st.builds(Attempt, st.integers(1, 8), st.integers(1, 3))


@given(st.dictionaries(attempts, st.sampled_from(STATES)), st.sets(attempts), st.sets(attempts), st.booleans())
def test_every_attempt_gets_exactly_one_verdict(there: dict[Attempt, str], held: set[Attempt], over: set[Attempt], fresh: bool) -> None:
    over -= held
    found = reconcile(rows(there), held, fresh, over.__contains__)
    verdicts = (
        found.wanted + [Attempt(r.job, r.attempt) for r in found.bare] + found.lost + found.returned + found.recorded + found.unwanted
    )
    assert len(verdicts) == len(set(verdicts))
    silent = {a for a in over if there.get(a) in ("acked", "lost")}
    assert set(verdicts) == (set(there) | held) - silent
    assert {a for a, _ in found.adopted} == set(there) - held - over


def test_what_never_arrived_goes_back_and_what_went_with_a_home_is_lost() -> None:
    held = [Attempt(1, 1)]
    assert reconcile([], held, False, lambda _: False).returned == held
    assert reconcile([], held, True, lambda _: False).lost == held


def test_a_journal_that_was_rolled_back_learns_from_the_agent() -> None:
    there = {Attempt(1, 1): "acked", Attempt(2, 1): "ended", Attempt(3, 1): "running", Attempt(4, 1): "queued"}
    found = reconcile(rows(there), [], False, lambda _: False)
    assert [r.job for r in found.bare] == [1]
    assert found.held == [Attempt(2, 1)] and found.running == [Attempt(3, 1)] and found.queued == [Attempt(4, 1)]
    assert dict(found.adopted) == {a: a.job != 4 for a in there}


def test_what_is_settled_is_ended_there_or_forgotten() -> None:
    there = {Attempt(1, 1): "running", Attempt(2, 1): "ended", Attempt(3, 1): "acked"}
    found = reconcile(rows(there), [], False, lambda _: True)
    assert found.unwanted == [Attempt(1, 1)] and found.recorded == [Attempt(2, 1)] and not found.bare


def test_pre_and_post_are_not_jobs() -> None:
    assert reconcile(rows({Attempt(-1, 5): "running"}), [], False, lambda _: False).wanted == []
