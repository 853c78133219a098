"""The scheduler's rules by example: each test is a short story of events, and what must be answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

from cloudtask.model import Attempt, Halt
from cloudtask.scheduler import (
    Action,
    Alarm,
    BackToQueue,
    Cancel,
    Finished,
    Ignored,
    Policy,
    Recall,
    ReleaseWorker,
    RetireWorker,
    Scheduler,
    Send,
    Settled,
    WillRetry,
)
from cloudtask.states import Ending, JobState

_A = TypeVar("_A", bound=Action)
_DEFAULTS: dict[str, Any] = {"retries": 0, "strikes": 0, "retry_delay": 1.0, "at_most_once": False, "halt": None}


def make(total: int, settled: Iterable[tuple[int, bool]] = (), attempts: dict[int, int] | None = None, **policy: Any) -> Scheduler:
    return Scheduler(Policy(**{**_DEFAULTS, **policy}), total, settled, attempts or {})


def only(kind: type[_A], actions: list[Action]) -> list[_A]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[Action]) -> dict[int, list[Attempt]]:
    return {action.worker: action.attempts for action in only(Send, actions)}


def join(scheduler: Scheduler, *workers: int, credit: int = 0, now: float = 0.0) -> list[Action]:
    actions: list[Action] = []
    for worker in workers:
        actions += scheduler.worker_joined(worker, now)
    for worker in workers:
        actions += scheduler.pull(worker, credit, now)
    return actions


def start(scheduler: Scheduler, worker: int, *attempts: Attempt, now: float = 0.0) -> list[Action]:
    return scheduler.started(worker, attempts, now)


def succeed(scheduler: Scheduler, worker: int, attempt: Attempt, now: float = 0.0) -> list[Action]:
    return scheduler.ended(worker, attempt, Ending.EXIT, 0, now)


def fail(scheduler: Scheduler, worker: int, attempt: Attempt, now: float = 0.0, ending: Ending = Ending.EXIT) -> list[Action]:
    return scheduler.ended(worker, attempt, ending, 1, now)


# --- sending ---------------------------------------------------------------------------------------------------------


def test_fresh_jobs_go_out_in_input_order_without_the_settled_ones() -> None:
    scheduler = make(6, settled=[(2, True), (4, False)])
    assert sent(join(scheduler, 1, credit=9)) == {1: [Attempt(1, 1), Attempt(3, 1), Attempt(5, 1), Attempt(6, 1)]}
    assert (scheduler.pending, scheduler.active, scheduler.succeeded, scheduler.failed) == (0, 4, 1, 1)


def test_attempt_numbers_go_on_where_the_session_stopped() -> None:
    scheduler = make(2, attempts={2: 7})
    assert sent(join(scheduler, 1, credit=2)) == {1: [Attempt(1, 1), Attempt(2, 8)]}


def test_numbers_may_come_in_a_sequence_indexed_by_job() -> None:
    scheduler = Scheduler(Policy(**_DEFAULTS), 2, {1: True}, [0, 3, 4])
    assert sent(join(scheduler, 1, credit=2)) == {1: [Attempt(2, 5)]}


def test_credit_adds_up_and_is_used_up() -> None:
    scheduler = make(5)
    join(scheduler, 1, credit=1)
    assert sent(scheduler.pull(1, 2, 0)) == {1: [Attempt(2, 1), Attempt(3, 1)]}
    assert not sent(start(scheduler, 1, Attempt(1, 1)))


def test_a_standing_pull_is_answered_when_a_job_comes_back() -> None:
    scheduler = make(1)
    join(scheduler, 1, 2, credit=1)
    actions = scheduler.returned(1, [Attempt(1, 1)], 0)
    assert actions == [BackToQueue(1), Send(2, [Attempt(1, 2)])]


def test_a_pull_before_joining_is_ignored() -> None:
    scheduler = make(1)
    assert scheduler.pull(1, 1, 0) == []


def test_many_workers_share_and_the_last_jobs_are_dealt_one_by_one() -> None:
    scheduler = make(40)
    join(scheduler, 1, 2, 3, 4)
    assert len(sent(scheduler.pull(1, 100, 0))[1]) == 5
    scheduler = make(3)
    join(scheduler, 1, 2, 3, 4)
    assert len(sent(scheduler.pull(1, 100, 0))[1]) == 1


def test_a_lone_worker_gets_all_that_it_asks_for() -> None:
    scheduler = make(40)
    assert len(sent(join(scheduler, 1, credit=30))[1]) == 30


def test_the_least_busy_worker_is_served_first() -> None:
    scheduler = make(3)
    join(scheduler, 1, 2)
    scheduler.hold()
    scheduler.pull(1, 1, 0)
    scheduler.release(0)
    scheduler.hold()
    scheduler.pull(1, 1, 0)
    scheduler.pull(2, 1, 0)
    assert [action.worker for action in only(Send, scheduler.release(0))] == [2, 1]


def test_a_worker_that_joins_late_gets_jobs_at_once() -> None:
    scheduler = make(10)
    join(scheduler, 1, credit=2)
    assert sent(join(scheduler, 2, credit=1)) == {2: [Attempt(3, 1)]}


def test_nothing_is_sent_before_the_inventory_is_complete() -> None:
    scheduler = make(2)
    scheduler.hold(0)
    assert join(scheduler, 1, credit=2) == []
    scheduler.adopted(7, [(Attempt(1, 1), True)], 0)
    assert sent(scheduler.release(0)) == {1: [Attempt(2, 1)]}


# --- order of choice -------------------------------------------------------------------------------------------------


def test_what_came_back_goes_before_fresh_ones_in_job_order() -> None:
    scheduler = make(5)
    join(scheduler, 1, credit=3)
    scheduler.returned(1, [Attempt(3, 1), Attempt(1, 1)], 0)
    assert sent(scheduler.pull(1, 4, 0)) == {1: [Attempt(1, 2), Attempt(3, 2), Attempt(4, 1), Attempt(5, 1)]}


def test_a_retry_goes_to_another_worker_at_once_and_before_all_else() -> None:
    scheduler = make(4, retries=1, retry_delay=100)
    join(scheduler, 1, 2)
    scheduler.pull(1, 1, 0)
    scheduler.pull(2, 1, 0)
    scheduler.returned(2, [Attempt(2, 1)], 0)
    fail(scheduler, 1, Attempt(1, 1))
    assert sent(scheduler.pull(1, 1, 0)) == {1: [Attempt(2, 2)]}
    assert sent(scheduler.pull(2, 1, 0)) == {2: [Attempt(1, 2)]}


def test_the_same_worker_waits_for_a_delay_that_doubles() -> None:
    scheduler = make(1, retries=2, retry_delay=10)
    join(scheduler, 1, credit=1)
    actions = fail(scheduler, 1, Attempt(1, 1), now=100)
    (retry,), (alarm,) = only(WillRetry, actions), only(Alarm, actions)
    assert (retry.failures, retry.of) == (1, 2)
    assert 5 <= retry.delay <= 10
    assert alarm.at == 100 + retry.delay
    assert not sent(scheduler.pull(1, 1, 100))
    assert only(Alarm, scheduler.tick(101)) == [alarm], "a tick that comes too early must not lose the alarm"
    assert sent(scheduler.tick(alarm.at)) == {1: [Attempt(1, 2)]}
    (retry,) = only(WillRetry, fail(scheduler, 1, Attempt(1, 2), now=200))
    assert 10 <= retry.delay <= 20


def test_delays_are_at_most_the_maximum_and_differ_from_job_to_job() -> None:
    policy = Policy(**{**_DEFAULTS, "retries": 99, "retry_delay_max": 30})
    delays = {policy.delay(job, 5000) for job in range(1, 20)}
    assert max(delays) <= 30
    assert min(delays) >= 15
    assert len(delays) > 15


def test_replacements_for_what_is_in_doubt_come_last() -> None:
    scheduler = make(3)
    join(scheduler, 1, credit=1)
    join(scheduler, 2)
    scheduler.contact_lost(1, 0)
    assert sent(scheduler.pull(2, 3, 0)) == {2: [Attempt(2, 1), Attempt(3, 1), Attempt(1, 2)]}


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [Ending.EXIT, Ending.SIGNAL, Ending.OOM, Ending.TIMEOUT, Ending.UNSTARTED])
def test_a_failure_burns_a_retry_and_the_last_one_settles(ending: Ending) -> None:
    scheduler = make(1, retries=1, retry_delay=0)
    join(scheduler, 1, credit=2)
    assert only(WillRetry, fail(scheduler, 1, Attempt(1, 1), ending=ending)) == [WillRetry(1, 1, 1, 0)]
    actions = fail(scheduler, 1, Attempt(1, 2), ending=ending)
    assert actions == [Settled(1, 2, False, ending), ReleaseWorker(1), Finished()]
    assert scheduler.timeouts == (ending is Ending.TIMEOUT)
    assert (scheduler.failed, scheduler.state(1)) == (1, JobState.FAILED)


@pytest.mark.parametrize("ending", [Ending.ABORTED, Ending.SUPERSEDED, Ending.LOST])
def test_other_endings_burn_no_retry_and_no_strike(ending: Ending) -> None:
    scheduler = make(1, strikes=1)
    join(scheduler, 1, credit=2)
    start(scheduler, 1, Attempt(1, 1))
    assert fail(scheduler, 1, Attempt(1, 1), ending=ending) == [BackToQueue(1), Send(1, [Attempt(1, 2)])]
    assert only(Settled, succeed(scheduler, 1, Attempt(1, 2))) == [Settled(1, 2, True, Ending.EXIT)]


def test_failures_of_earlier_runs_count() -> None:
    scheduler = Scheduler(Policy(**{**_DEFAULTS, "retries": 2}), 1, failures={1: 2})
    join(scheduler, 1, credit=1)
    assert only(Settled, fail(scheduler, 1, Attempt(1, 1))) == [Settled(1, 1, False, Ending.EXIT)]


def test_strikes_retire_a_worker_and_the_job_is_counted_too() -> None:
    scheduler = make(9, strikes=2, retries=1)
    join(scheduler, 1, 2)
    scheduler.pull(1, 4, 0)
    scheduler.pull(1, 2, 0)
    one, two, *_ = scheduler.in_flight(1)
    fail(scheduler, 1, one)
    actions = fail(scheduler, 1, two)
    rest = scheduler.in_flight(1)
    assert only(WillRetry, actions)
    assert only(RetireWorker, actions) == [RetireWorker(1, 2)]
    assert only(Recall, actions) == [Recall(1, len(rest))]
    assert not sent(scheduler.pull(1, 9, 99))
    assert only(ReleaseWorker, scheduler.returned(1, rest, 0)) == [ReleaseWorker(1)]


def test_a_success_wipes_the_strikes_out() -> None:
    scheduler = make(4, strikes=2)
    join(scheduler, 1, 2, credit=4)
    for attempt, good in zip(scheduler.in_flight(1), (False, True, False), strict=False):
        actions = succeed(scheduler, 1, attempt) if good else fail(scheduler, 1, attempt)
        assert not only(RetireWorker, actions)


# --- losses ----------------------------------------------------------------------------------------------------------


def lose_once(scheduler: Scheduler, worker: int, number: int) -> list[Action]:
    start(scheduler, worker, Attempt(1, number))
    return scheduler.lost(worker, [Attempt(1, number)], 0)


def test_the_third_loss_is_poison_and_before_it_the_job_runs_alone() -> None:
    scheduler = make(9)
    join(scheduler, 1, credit=2)
    assert BackToQueue(1) in lose_once(scheduler, 1, 1)
    assert sent(scheduler.pull(1, 1, 0)) == {1: [Attempt(1, 2)]}
    assert not sent(lose_once(scheduler, 1, 2)), "it waits until the worker has nothing else"
    assert sent(scheduler.pull(1, 3, 0)) == {1: [Attempt(3, 1), Attempt(4, 1), Attempt(5, 1)]}
    for job in (2, 3, 4):
        succeed(scheduler, 1, Attempt(job, 1))
    scheduler.pull(1, 2, 0)
    for attempt in scheduler.in_flight(1)[:-1]:
        succeed(scheduler, 1, attempt)
    (last,) = scheduler.in_flight(1)
    succeed(scheduler, 1, last)
    assert sent(scheduler.pull(1, 5, 0)) == {1: [Attempt(1, 3)]}
    assert not sent(scheduler.pull(1, 5, 0))
    actions = lose_once(scheduler, 1, 3)
    assert Settled(1, 3, False, Ending.POISON) in actions
    assert sent(actions), "the worker takes others again"


def test_reclaims_and_unstarted_attempts_do_not_count_as_losses() -> None:
    scheduler = make(1)
    join(scheduler, 1, credit=99)
    for number in range(1, 9):
        if number % 2:
            start(scheduler, 1, Attempt(1, number))
            actions = scheduler.lost(1, None, 0, counts=False)
        else:
            actions = scheduler.lost(1, None, 0)
        assert actions == [BackToQueue(1), Send(1, [Attempt(1, number + 1)])]


def test_losses_of_earlier_runs_count() -> None:
    scheduler = Scheduler(Policy(**_DEFAULTS), 1, losses={1: 2})
    join(scheduler, 1, credit=1)
    assert Settled(1, 1, False, Ending.POISON) in lose_once(scheduler, 1, 1)


def test_a_suspect_that_fails_waits_out_its_delay_and_runs_alone_again() -> None:
    scheduler = Scheduler(Policy(**{**_DEFAULTS, "retries": 1}), 2, losses={1: 2})
    join(scheduler, 1, credit=1)
    assert scheduler.in_flight(1) == [Attempt(1, 1)]
    (retry,) = only(WillRetry, fail(scheduler, 1, Attempt(1, 1)))
    assert sent(scheduler.pull(1, 2, 0)) == {1: [Attempt(2, 1)]}
    assert not sent(scheduler.tick(retry.delay))
    assert sent(succeed(scheduler, 1, Attempt(2, 1), now=retry.delay)) == {1: [Attempt(1, 2)]}


def test_returned_after_started_is_taken_for_lost() -> None:
    scheduler = make(1)
    join(scheduler, 1, credit=3)
    for number in (1, 2, 3):
        start(scheduler, 1, Attempt(1, number))
        actions = scheduler.returned(1, [Attempt(1, number)], 0)
    assert Settled(1, 3, False, Ending.POISON) in actions


# --- lost contact ----------------------------------------------------------------------------------------------------


def in_doubt(total: int = 1, **policy: Any) -> Scheduler:
    """Worker 1 has job 1 running and is silent, worker 2 has joined."""
    scheduler = make(total, **policy)
    join(scheduler, 1, credit=1)
    start(scheduler, 1, Attempt(1, 1))
    join(scheduler, 2)
    scheduler.contact_lost(1, 0)
    return scheduler


def test_contact_back_withdraws_a_queued_replacement() -> None:
    scheduler = in_doubt(2)
    assert scheduler.needs_workers == 2
    assert not only(Cancel, scheduler.contact_back(1, 0))
    assert sent(scheduler.pull(2, 5, 0)) == {2: [Attempt(2, 1)]}


def test_contact_back_cancels_a_replacement_that_was_only_sent() -> None:
    scheduler = in_doubt()
    scheduler.pull(2, 1, 0)
    assert only(Cancel, scheduler.contact_back(1, 0)) == [Cancel(2, [Attempt(1, 2)], Ending.SUPERSEDED)]
    assert not only(BackToQueue, scheduler.returned(2, [Attempt(1, 2)], 0))
    assert only(Settled, succeed(scheduler, 1, Attempt(1, 1))) == [Settled(1, 1, True, Ending.EXIT)]


def test_the_first_end_wins_once_the_replacement_has_started() -> None:
    scheduler = in_doubt()
    scheduler.pull(2, 1, 0)
    start(scheduler, 2, Attempt(1, 2))
    assert not only(Cancel, scheduler.contact_back(1, 0))
    actions = succeed(scheduler, 1, Attempt(1, 1))
    assert actions[:2] == [Settled(1, 1, True, Ending.EXIT), Cancel(2, [Attempt(1, 2)], Ending.SUPERSEDED)]
    assert Finished() not in actions, "the other one is still running"
    actions = fail(scheduler, 2, Attempt(1, 2), ending=Ending.SUPERSEDED)
    assert not only(Settled, actions)
    assert Finished() in actions


def test_a_silent_loser_is_not_waited_for_and_is_cancelled_when_it_is_back() -> None:
    scheduler = in_doubt(2)
    scheduler.pull(2, 2, 0)
    start(scheduler, 2, Attempt(1, 2), Attempt(2, 1))
    assert Cancel(1, [Attempt(1, 1)], Ending.SUPERSEDED) in succeed(scheduler, 2, Attempt(1, 2))
    assert only(Cancel, scheduler.contact_back(1, 0)) == [Cancel(1, [Attempt(1, 1)], Ending.SUPERSEDED)]
    scheduler.contact_lost(1, 0)
    assert Finished() in succeed(scheduler, 2, Attempt(2, 1))
    assert scheduler.worker_left(1, 0) == []


def test_if_both_fail_one_retry_is_burned() -> None:
    scheduler = in_doubt(retries=1, retry_delay=5)
    scheduler.pull(2, 1, 0)
    start(scheduler, 2, Attempt(1, 2))
    scheduler.contact_back(1, 0)
    assert only(WillRetry, fail(scheduler, 2, Attempt(1, 2)))
    assert not only(WillRetry, fail(scheduler, 1, Attempt(1, 1)))
    assert sent(scheduler.pull(1, 1, 0)) == {1: [Attempt(1, 3)]}
    assert Settled(1, 3, False, Ending.EXIT) in fail(scheduler, 1, Attempt(1, 3))


def test_a_late_success_of_a_cancelled_attempt_settles_a_job_that_waits_for_its_retry() -> None:
    scheduler = in_doubt(retries=1, retry_delay=5)
    scheduler.pull(2, 1, 0)
    start(scheduler, 2, Attempt(1, 2))
    fail(scheduler, 2, Attempt(1, 2))
    actions = succeed(scheduler, 1, Attempt(1, 1))
    assert Settled(1, 1, True, Ending.EXIT) in actions
    assert Finished() in actions
    assert not sent(scheduler.tick(99))


def test_a_failure_of_the_one_in_doubt_withdraws_its_replacement() -> None:
    scheduler = in_doubt(retries=1, retry_delay=50)
    assert only(WillRetry, fail(scheduler, 1, Attempt(1, 1)))
    assert sent(scheduler.pull(2, 5, 0)) == {2: [Attempt(1, 2)]}


def test_a_definite_loss_moves_the_replacement_up() -> None:
    scheduler = in_doubt(3)
    assert scheduler.lost(1, None, 0) == [BackToQueue(1)]
    assert sent(scheduler.pull(2, 1, 0)) == {2: [Attempt(1, 2)]}


def test_the_loss_of_one_of_two_changes_nothing() -> None:
    scheduler = in_doubt()
    scheduler.pull(2, 1, 0)
    start(scheduler, 2, Attempt(1, 2))
    assert scheduler.lost(1, None, 0) == []
    assert only(Settled, succeed(scheduler, 2, Attempt(1, 2))) == [Settled(1, 2, True, Ending.EXIT)]


def test_a_replacement_that_falls_silent_is_replaced_too() -> None:
    scheduler = in_doubt()
    scheduler.pull(2, 1, 0)
    scheduler.contact_lost(2, 0)
    assert sent(join(scheduler, 3, credit=1)) == {3: [Attempt(1, 3)]}
    assert only(Cancel, scheduler.contact_back(2, 0)) == [Cancel(3, [Attempt(1, 3)], Ending.SUPERSEDED)]


def test_a_silent_worker_is_sent_nothing_and_keeps_its_credit() -> None:
    scheduler = make(5)
    join(scheduler, 1, 2)
    scheduler.contact_lost(1, 0)
    assert not scheduler.pull(1, 2, 0)
    assert sent(scheduler.contact_back(1, 0)) == {1: [Attempt(1, 1), Attempt(2, 1)]}


def test_a_suspect_in_doubt_is_replaced_alone() -> None:
    scheduler = Scheduler(Policy(**_DEFAULTS), 3, losses={1: 2})
    join(scheduler, 1, credit=1)
    scheduler.contact_lost(1, 0)
    assert sent(join(scheduler, 2, credit=9)) == {2: [Attempt(1, 2)]}


# --- at most once ----------------------------------------------------------------------------------------------------


def test_at_most_once_refuses_retries() -> None:
    with pytest.raises(AssertionError):
        make(1, at_most_once=True, retries=1)


@pytest.mark.parametrize("was_started", [True, False])
def test_at_most_once_a_lost_attempt_is_unknown(was_started: bool) -> None:
    scheduler = make(1, at_most_once=True)
    join(scheduler, 1, credit=2)
    if was_started:
        start(scheduler, 1, Attempt(1, 1))
    actions = scheduler.lost(1, None, 0, counts=False)
    assert actions == [Settled(1, 1, False, Ending.UNKNOWN), ReleaseWorker(1), Finished()]


def test_at_most_once_a_returned_attempt_goes_again() -> None:
    scheduler = make(1, at_most_once=True)
    join(scheduler, 1, credit=2)
    assert sent(scheduler.returned(1, [Attempt(1, 1)], 0)) == {1: [Attempt(1, 2)]}


def test_at_most_once_waits_for_a_silent_worker() -> None:
    scheduler = in_doubt(at_most_once=True)
    assert not sent(scheduler.pull(2, 1, 0))
    assert scheduler.needs_workers == 0
    assert not scheduler.finished
    assert Settled(1, 1, False, Ending.UNKNOWN) in scheduler.lost(1, None, 0)


def test_at_most_once_two_adopted_attempts_of_one_job_are_both_settled_before_it_goes_again() -> None:
    scheduler = make(1, at_most_once=True)
    scheduler.adopted(1, [(Attempt(1, 1), False)], 0)
    scheduler.adopted(2, [(Attempt(1, 2), False)], 0)
    join(scheduler, 3, credit=1)
    scheduler.contact_lost(1, 0)
    assert only(Cancel, scheduler.contact_back(1, 0)) == [Cancel(2, [Attempt(1, 2)], Ending.SUPERSEDED)]
    assert scheduler.returned(1, [Attempt(1, 1)], 0) == []
    assert Settled(1, 2, False, Ending.UNKNOWN) in fail(scheduler, 2, Attempt(1, 2), ending=Ending.SUPERSEDED)


def test_at_most_once_an_abort_leaves_what_ran_unknown() -> None:
    scheduler = make(3, at_most_once=True)
    join(scheduler, 1, credit=2)
    start(scheduler, 1, Attempt(1, 1))
    scheduler.abort(0)
    assert Settled(1, 1, False, Ending.UNKNOWN) in fail(scheduler, 1, Attempt(1, 1), ending=Ending.ABORTED)
    assert BackToQueue(2) in scheduler.returned(1, [Attempt(2, 1)], 0)
    assert scheduler.finished


# --- stopping --------------------------------------------------------------------------------------------------------


def test_drain_starts_nothing_more_and_lets_jobs_end() -> None:
    scheduler = make(5, retries=3)
    join(scheduler, 1, 2)
    scheduler.pull(1, 2, 0)
    scheduler.pull(2, 1, 0)
    assert not only(Cancel, scheduler.drain(0))
    assert not sent(scheduler.pull(1, 5, 0))
    actions = [*succeed(scheduler, 1, Attempt(1, 1)), *succeed(scheduler, 2, Attempt(scheduler.in_flight(2)[0].job, 1))]
    assert only(ReleaseWorker, actions) == [ReleaseWorker(2)]
    (last,) = scheduler.in_flight(1)
    actions = fail(scheduler, 1, last)
    assert only(WillRetry, actions)
    assert not only(Alarm, actions)
    assert actions[-1] == Finished()
    assert (scheduler.pending, scheduler.needs_workers) == (3, 0)


def test_abort_cancels_what_is_in_flight_and_it_is_pending_again() -> None:
    scheduler = make(3)
    join(scheduler, 1, credit=2)
    assert scheduler.abort(0) == [Cancel(1, [Attempt(1, 1), Attempt(2, 1)], Ending.ABORTED)]
    assert BackToQueue(1) in fail(scheduler, 1, Attempt(1, 1), ending=Ending.ABORTED)
    actions = succeed(scheduler, 1, Attempt(2, 1))
    assert actions == [Settled(2, 1, True, Ending.EXIT), ReleaseWorker(1), Finished()]
    assert (scheduler.pending, scheduler.succeeded, scheduler.stopped) == (2, 1, True)


def test_stopping_does_not_wait_for_silent_workers() -> None:
    scheduler = in_doubt()
    assert Finished() in scheduler.drain(0)
    assert scheduler.active == 1


def test_an_attempt_adopted_during_an_abort_is_cancelled() -> None:
    scheduler = make(1)
    scheduler.hold()
    join(scheduler, 1)
    scheduler.adopted(2, [(Attempt(1, 1), True)], 0)
    scheduler.abort(0)
    assert only(Cancel, scheduler.adopted(1, [(Attempt(1, 2), True)], 0)) == [Cancel(1, [Attempt(1, 2)], Ending.ABORTED)]


def test_halt_now_cancels_and_halt_soon_does_not() -> None:
    for now in (True, False):
        scheduler = make(9, halt=Halt(now=now, count=2))
        join(scheduler, 1, credit=4)
        fail(scheduler, 1, Attempt(1, 1))
        assert scheduler.needs_workers
        actions = fail(scheduler, 1, Attempt(2, 1))
        assert only(Cancel, actions) == ([Cancel(1, [Attempt(3, 1), Attempt(4, 1)], Ending.ABORTED)] if now else [])
        assert scheduler.stopped
        assert not sent(scheduler.pull(1, 3, 0))


def test_halt_percent_is_of_all_the_sessions_jobs() -> None:
    scheduler = make(10, settled=[(job, True) for job in range(1, 6)], halt=Halt(now=True, percent=20))
    join(scheduler, 1, credit=5)
    assert not only(Cancel, fail(scheduler, 1, Attempt(6, 1)))
    assert len(only(Cancel, fail(scheduler, 1, Attempt(7, 1)))) == 1


# --- workers come and go ---------------------------------------------------------------------------------------------


def test_recall_takes_half_from_the_busy_for_the_idle_once() -> None:
    scheduler = make(9)
    join(scheduler, 1, credit=9)
    start(scheduler, 1, Attempt(1, 1))
    actions = join(scheduler, 2, credit=3)
    assert only(Recall, actions) == [Recall(1, 4)]
    assert not only(Recall, start(scheduler, 1, Attempt(2, 1)))
    assert sent(scheduler.returned(1, [Attempt(9, 1), Attempt(8, 1)], 0)) == {2: [Attempt(8, 2)]}


def test_the_only_attempt_of_a_worker_is_not_recalled() -> None:
    scheduler = make(1)
    join(scheduler, 1, credit=1)
    assert not only(Recall, join(scheduler, 2, credit=1))


def test_idle_workers_are_released_but_for_one_spare() -> None:
    scheduler = make(2)
    join(scheduler, 1, 2)
    scheduler.pull(1, 1, 0)
    scheduler.pull(2, 1, 0)
    start(scheduler, 1, Attempt(1, 1))
    start(scheduler, 2, Attempt(2, 1))
    assert not only(ReleaseWorker, join(scheduler, 3, credit=1))
    assert only(ReleaseWorker, join(scheduler, 4, credit=1)) == [ReleaseWorker(4)]
    assert only(ReleaseWorker, succeed(scheduler, 1, Attempt(1, 1))) == [ReleaseWorker(1)], "the one that asked stays"
    assert sorted(only(ReleaseWorker, succeed(scheduler, 2, Attempt(2, 1)))) == [ReleaseWorker(2), ReleaseWorker(3)]
    assert scheduler.finished


def test_the_spare_takes_over_a_job_that_comes_back() -> None:
    scheduler = make(1)
    join(scheduler, 1, credit=1)
    start(scheduler, 1, Attempt(1, 1))
    join(scheduler, 2, credit=1)
    scheduler.retire(1, 0)
    actions = fail(scheduler, 1, Attempt(1, 1), ending=Ending.ABORTED)
    assert actions == [BackToQueue(1), ReleaseWorker(1), Send(2, [Attempt(1, 2)])]


def test_a_retired_idle_worker_is_released_at_once_and_may_join_again() -> None:
    scheduler = make(5)
    join(scheduler, 1)
    assert scheduler.retire(1, 0) == [ReleaseWorker(1)]
    assert scheduler.worker_left(1, 0) == []
    assert sent(join(scheduler, 1, credit=1)) == {1: [Attempt(1, 1)]}


def test_leaving_with_an_undecided_attempt_is_a_bug() -> None:
    scheduler = make(1)
    join(scheduler, 1, credit=1)
    with pytest.raises(AssertionError):
        scheduler.worker_left(1, 0)


def test_a_new_supervisor_asks_afresh_and_hears_again_what_to_cancel() -> None:
    scheduler = in_doubt(1)
    scheduler.pull(2, 5, 0)
    scheduler.contact_back(1, 0)
    assert only(Cancel, scheduler.worker_restarted(2, 0)) == [Cancel(2, [Attempt(1, 2)], Ending.SUPERSEDED)]
    scheduler.returned(2, [Attempt(1, 2)], 0)
    scheduler.retire(1, 0)
    assert not sent(fail(scheduler, 1, Attempt(1, 1), ending=Ending.ABORTED)), "its credit is gone"
    assert sent(scheduler.pull(2, 1, 0)) == {2: [Attempt(1, 3)]}


def test_adopted_attempts_are_not_sent_again_and_their_ends_count() -> None:
    scheduler = make(3, attempts={1: 4})
    scheduler.adopted(1, [(Attempt(1, 4), True), (Attempt(2, 1), False)], 0)
    assert (scheduler.active, scheduler.pending) == (2, 1)
    assert sent(join(scheduler, 1, credit=5)) == {1: [Attempt(3, 1)]}
    assert only(Settled, succeed(scheduler, 1, Attempt(1, 4))) == [Settled(1, 4, True, Ending.EXIT)]


def test_an_adopted_attempt_takes_its_job_out_of_the_queue() -> None:
    scheduler = make(2, retries=1)
    join(scheduler, 1, credit=2)
    fail(scheduler, 1, Attempt(1, 1))
    scheduler.returned(1, [Attempt(2, 1)], 0)
    scheduler.adopted(2, [(Attempt(1, 9), True), (Attempt(2, 9), True)], 0)
    assert not sent(scheduler.pull(1, 5, 99))
    assert sent(scheduler.lost(2, None, 99)) == {1: [Attempt(1, 10), Attempt(2, 10)]}


def test_an_adopted_attempt_of_a_settled_job_is_cancelled() -> None:
    scheduler = make(2, settled=[(1, True)])
    actions = scheduler.adopted(1, [(Attempt(1, 3), True)], 0)
    assert actions == [Cancel(1, [Attempt(1, 3)], Ending.SUPERSEDED)]


def test_two_adopted_attempts_of_one_job_race() -> None:
    scheduler = make(1)
    scheduler.adopted(1, [(Attempt(1, 1), True)], 0)
    scheduler.adopted(2, [(Attempt(1, 2), True)], 0)
    actions = succeed(scheduler, 2, Attempt(1, 2))
    assert actions[:2] == [Settled(1, 2, True, Ending.EXIT), Cancel(1, [Attempt(1, 1)], Ending.SUPERSEDED)]


# --- a worker is not trusted -----------------------------------------------------------------------------------------


def test_what_cannot_be_is_ignored() -> None:
    scheduler = make(2)
    join(scheduler, 1, 2)
    scheduler.pull(1, 1, 0)
    mine, other = Attempt(1, 1), Attempt(2, 1)
    assert start(scheduler, 2, mine) == [Ignored(2, mine, "started")]
    assert succeed(scheduler, 1, other) == [Ignored(1, other, "ended exit")]
    assert scheduler.returned(2, [mine], 0) == [Ignored(2, mine, "returned")]
    assert scheduler.lost(2, [mine], 0) == [Ignored(2, mine, "lost")]
    assert scheduler.ended(1, mine, Ending.POISON, 0, 0) == [Ignored(1, mine, "ended poison")]
    assert scheduler.adopted(1, [(Attempt(77, 1), True)], 0) == [Ignored(1, Attempt(77, 1), "adopted")]
    assert succeed(scheduler, 99, mine) == [Ignored(99, mine, "ended exit")]
    succeed(scheduler, 1, mine)
    assert succeed(scheduler, 1, mine) == [Ignored(1, mine, "ended exit")]
    assert start(scheduler, 1, mine) == [Ignored(1, mine, "started")]
    assert (scheduler.succeeded, scheduler.pending) == (1, 1)


def test_an_empty_session_is_finished_at_once() -> None:
    assert make(0).tick(0) == [Finished()]
    assert make(1, settled=[(1, False)]).tick(0) == [Finished()]
