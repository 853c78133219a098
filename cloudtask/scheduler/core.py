"""The scheduler's events, one method each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cloudtask.model import Attempt
from cloudtask.scheduler.actions import Action, Alarm, Cancel, Finished, Ignored, Recall, RetireWorker
from cloudtask.scheduler.backlog import Backlog, Numbers
from cloudtask.scheduler.balance import deal, let_go, recall, release_worker
from cloudtask.scheduler.fates import Fates
from cloudtask.scheduler.policy import Policy
from cloudtask.scheduler.roster import CANCELLED, STARTED, Roster, Worker
from cloudtask.states import Ending, JobState

_RUNNING, _DRAINING, _ABORTING = range(3)
_SPARES = 1
# Only the scheduler concludes these; a worker that claims one is not believed.
_CONCLUSIONS = frozenset({Ending.UNKNOWN, Ending.POISON})
_CAME_BACK = frozenset({Ending.ABORTED, Ending.SUPERSEDED})


class Scheduler:
    """One run's decisions.

    ``settled`` are the jobs that are over already, with whether they succeeded; ``attempts``, ``failures`` and ``losses`` what
    the session's jobs have used up so far: the highest attempt number, the failures that burned a retry, the started attempts lost.
    """

    def __init__(
        self,
        policy: Policy,
        total_jobs: int,
        settled: Mapping[int, bool] | Iterable[tuple[int, bool]] = (),
        attempts: Numbers = (),
        *,
        failures: Numbers = (),
        losses: Numbers = (),
    ) -> None:
        pairs = settled.items() if isinstance(settled, Mapping) else settled
        self._policy = policy
        self._backlog = Backlog(total_jobs, pairs, attempts)
        self._roster = Roster()
        self._fates = Fates(policy, self._backlog, self._roster, failures, losses)
        self._stop = _RUNNING
        self._held = False
        self._alarm: float | None = None
        self._finished = False

    # --- what displays ask -------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Jobs neither settled nor under way."""
        return self._backlog.pending

    @property
    def active(self) -> int:
        """Jobs with an attempt sent, started or in doubt."""
        return self._backlog.active

    @property
    def succeeded(self) -> int:
        """Jobs settled well, those of earlier runs included."""
        return self._backlog.succeeded

    @property
    def failed(self) -> int:
        """Jobs settled badly, those of earlier runs and timeouts included."""
        return self._backlog.failed

    @property
    def timeouts(self) -> int:
        """Jobs settled badly by a timeout, in this run."""
        return self._fates.timeouts

    @property
    def finished(self) -> bool:
        """True once Finished was said."""
        return self._finished

    @property
    def stopped(self) -> bool:
        """Nothing more is started: drained, halted or aborted."""
        return self._stop != _RUNNING

    @property
    def needs_workers(self) -> int:
        """How many attempts somebody must still be sent; 0 once stopped."""
        return 0 if self._stop else self._backlog.waiting

    def state(self, job: int) -> JobState:
        """Where a job stands."""
        return self._backlog.state(job)

    def last_attempt(self, job: int) -> int:
        """The highest attempt number that a job was given, 0 for none."""
        return self._backlog.highest_attempt(job)

    def in_flight(self, worker: int) -> list[Attempt]:
        """What a worker has, oldest first; those in doubt or cancelled included."""
        member = self._roster.get(worker)
        return list(member.flights) if member else []

    # --- workers -----------------------------------------------------------------------------------------------------

    def worker_joined(self, worker: int, now: float) -> list[Action]:
        """A worker is ready for jobs, and not silent.  What it was adopted with stays in flight; one that was retired takes nothing."""
        actions: list[Action] = []
        member = self._roster.enter(worker)
        member.joined = True
        self._hear_again(member, actions)
        self._roster.refresh(member)
        return self._proceed(actions, now, member)

    def pull(self, worker: int, count: int, now: float) -> list[Action]:
        """A worker can take ``count`` more; what it does not get now it gets as soon as there is something."""
        member = self._roster.get(worker)
        if member is None or count <= 0:
            return []
        member.credit += count
        self._roster.refresh(member)
        return self._proceed([], now)

    def worker_restarted(self, worker: int, now: float) -> list[Action]:
        """A new supervisor looks after it: it asks afresh, and may not have heard what was to be cancelled."""
        actions: list[Action] = []
        member = self._roster.enter(worker)
        member.credit = 0
        self._roster.recall(member, 0)
        self._roster.refresh(member)
        self._repeat_cancels(member, actions)
        return self._proceed(actions, now)

    def retire(self, worker: int, now: float) -> list[Action]:
        """It takes no more.  Its attempts go on or come back, as its supervisor says; after the last it is released."""
        member = self._roster.enter(worker)
        member.retiring = True
        self._roster.refresh(member)
        return self._proceed([], now, member)

    def worker_left(self, worker: int, now: float) -> list[Action]:
        """Its supervisor is gone for good.  What it had was said to be ended, returned or lost before.

        To have nothing sent to it in between, ``retire`` a worker before its attempts are said to be lost.
        """
        member = self._roster.get(worker)
        if member is None:
            return []
        undecided = [attempt for attempt in member.flights if not self._backlog.is_settled(attempt.job)]
        assert not undecided or self._finished, f"worker {worker} left with {undecided[:3]}"
        self._roster.leave(member)
        return self._proceed([], now)

    def contact_lost(self, worker: int, now: float) -> list[Action]:
        """Nobody knows what becomes of its attempts: their jobs are queued once more, last in line (not at most once)."""
        member = self._roster.get(worker)
        if member is None or member.silent:
            return []
        actions: list[Action] = []
        member.silent = True
        self._roster.recall(member, 0)
        self._roster.refresh(member)
        self._roster.contest_all(member)
        for attempt in member.flights:
            self._fates.secure(attempt.job, actions)
        return self._proceed(actions, now)

    def contact_back(self, worker: int, now: float) -> list[Action]:
        """Its attempts go on; replacements that have not started are withdrawn, against the others the first to end wins."""
        member = self._roster.get(worker)
        if member is None:
            return []
        actions: list[Action] = []
        self._hear_again(member, actions)
        return self._proceed(actions, now)

    def _hear_again(self, member: Worker, actions: list[Action]) -> None:
        was_silent, member.silent = member.silent, False
        self._roster.refresh(member)
        if not was_silent:
            return
        self._repeat_cancels(member, actions)
        for attempt in [attempt for attempt, flags in member.flights.items() if not flags & CANCELLED]:
            self._backlog.withdraw_replacement(attempt.job)
            rivals = self._roster.rivals(attempt.job)
            self._fates.supersede([rival for rival in rivals if rival[0] is not member and not self._has_started(*rival)], actions)

    @staticmethod
    def _has_started(worker: Worker, attempt: Attempt) -> bool:
        return bool(worker.flights[attempt] & STARTED)

    def _repeat_cancels(self, member: Worker, actions: list[Action]) -> None:
        if self._stop == _ABORTING:
            self._cancel_all(member, actions)
        elif superseded := [attempt for attempt, flags in member.flights.items() if flags & CANCELLED]:
            actions.append(Cancel(member.number, superseded, Ending.SUPERSEDED))

    # --- attempts ----------------------------------------------------------------------------------------------------

    def started(self, worker: int, attempts: Iterable[Attempt], now: float) -> list[Action]:
        """Attempts that a worker was sent run now."""
        actions: list[Action] = []
        member = self._roster.get(worker)
        for attempt in attempts:
            if member is None or attempt not in member.flights:
                actions.append(Ignored(worker, attempt, "started"))
            else:
                self._roster.mark(member, attempt, STARTED)
        return self._proceed(actions, now)

    def ended(self, worker: int, attempt: Attempt, ending: Ending, value: int, now: float) -> list[Action]:
        """An attempt is over; ``value`` is the exit status or signal number."""
        member = self._roster.get(worker)
        flags = self._roster.land(member, attempt) if member and ending not in _CONCLUSIONS else None
        if member is None or flags is None:
            return [Ignored(worker, attempt, f"ended {ending}")]
        actions: list[Action] = []
        if ending is Ending.EXIT and value == 0:
            member.strikes = 0
            self._fates.settle(attempt, True, ending, actions)
        elif ending in _CAME_BACK:
            self._fates.come_back(attempt, True, actions)
        elif ending is Ending.LOST:
            self._fates.lose(attempt, flags, True, actions)
        else:
            self._fates.fail(worker, attempt, flags, ending, now=now, actions=actions)
            self._strike(member, actions)
        return self._proceed(actions, now, member)

    def returned(self, worker: int, attempts: Iterable[Attempt], now: float) -> list[Action]:
        """A worker never will start these.  One that it had said to be started is taken for lost: it may have run."""
        actions: list[Action] = []
        member = self._roster.get(worker)
        for attempt in attempts:
            flags = self._roster.land(member, attempt) if member else None
            if flags is None:
                actions.append(Ignored(worker, attempt, "returned"))
            elif flags & STARTED:
                self._fates.lose(attempt, flags, True, actions)
            else:
                self._fates.come_back(attempt, False, actions)
        if member:
            self._roster.recall(member, 0)
        return self._proceed(actions, now, member)

    def lost(self, worker: int, attempts: Iterable[Attempt] | None, now: float, counts: bool = True) -> list[Action]:
        """Attempts (None: all) that went away with their agent or machine.

        ``counts`` False: by the provider's reclaim or our own destroy, which says nothing about the job.
        """
        actions: list[Action] = []
        member = self._roster.get(worker)
        if attempts is None:
            attempts = list(member.flights) if member else ()
        for attempt in attempts:
            flags = self._roster.land(member, attempt) if member else None
            if flags is None:
                actions.append(Ignored(worker, attempt, "lost"))
            else:
                self._fates.lose(attempt, flags, counts, actions)
        return self._proceed(actions, now, member)

    def adopted(self, worker: int, attempts: Iterable[tuple[Attempt, bool]], now: float) -> list[Action]:
        """Attempts that are under way, or in doubt, from an earlier run or a journal that lost its end; True for started ones.

        Those of settled jobs are cancelled.  The worker need not have joined.
        """
        actions: list[Action] = []
        member = self._roster.enter(worker)
        for attempt, started in attempts:
            if attempt.job not in self._backlog or attempt.number < 1:
                actions.append(Ignored(worker, attempt, "adopted"))
            elif attempt not in member.flights:
                self._adopt(member, attempt, started, actions)
            elif started:
                self._roster.mark(member, attempt, STARTED)
        return self._proceed(actions, now)

    def _adopt(self, member: Worker, attempt: Attempt, started: bool, actions: list[Action]) -> None:
        settled = self._backlog.is_settled(attempt.job)
        if not settled:
            if self._backlog.is_active(attempt.job):
                self._roster.contest(attempt.job, self._backlog.highest_attempt(attempt.job))
            self._backlog.adopt(attempt)
        self._roster.launch(member, [attempt], CANCELLED if settled else STARTED if started else 0)
        if settled or self._stop == _ABORTING:
            actions.append(Cancel(member.number, [attempt], Ending.SUPERSEDED if settled else Ending.ABORTED))
        elif member.silent:
            self._roster.contest(attempt.job, self._backlog.highest_attempt(attempt.job))
            self._fates.secure(attempt.job, actions)

    def _strike(self, member: Worker, actions: list[Action]) -> None:
        member.strikes += 1
        if self._policy.strikes and member.strikes >= self._policy.strikes and not member.retiring:
            member.retiring = True
            self._roster.refresh(member)
            actions.append(RetireWorker(member.number, member.strikes))
            if member.unstarted:
                # What it has not begun would only fail there too.
                actions.append(Recall(member.number, member.unstarted))

    # --- the run -----------------------------------------------------------------------------------------------------

    def hold(self, now: float = 0.0) -> list[Action]:
        """Send nothing: the inventory of a resume is not complete."""
        self._held = True
        return []

    def release(self, now: float) -> list[Action]:
        """The inventory is complete."""
        self._held = False
        return self._proceed([], now)

    def drain(self, now: float) -> list[Action]:
        """Start nothing more; what runs may end."""
        actions: list[Action] = []
        self._halt(_DRAINING, actions)
        return self._proceed(actions, now)

    def abort(self, now: float) -> list[Action]:
        """End everything; what was under way is pending again (unknown, at most once) as its end comes in."""
        actions: list[Action] = []
        self._halt(_ABORTING, actions)
        return self._proceed(actions, now)

    def tick(self, now: float) -> list[Action]:
        """An alarm went off, or something else made the caller look at the clock."""
        self._alarm = None
        return self._proceed([], now)

    def _halt(self, stop: int, actions: list[Action]) -> None:
        if stop > self._stop:
            self._stop = stop
            if stop == _ABORTING:
                for member in self._roster:
                    self._cancel_all(member, actions)

    def _cancel_all(self, member: Worker, actions: list[Action]) -> None:
        if member.flights:
            actions.append(Cancel(member.number, list(member.flights), Ending.ABORTED))

    # --- after every event -------------------------------------------------------------------------------------------

    def _proceed(self, actions: list[Action], now: float, member: Worker | None = None) -> list[Action]:
        """Whatever the event was: deal out what can be, let go whom nobody needs (``member`` may be one), see whether it is over."""
        if self._finished:
            return actions
        if self._policy.halt and self._fates.halted:
            self._halt(_ABORTING if self._policy.halt.now else _DRAINING, actions)
        if member and member.retiring and not member.flights:
            release_worker(self._roster, member, actions)
        if self._stop or not self._held:
            self._deal(actions, now)
            self._finish_if_over(actions)
        return actions

    def _deal(self, actions: list[Action], now: float) -> None:
        roster, waiting = self._roster, 0
        if not self._stop:
            self._backlog.wake(now)
            waiting = self._backlog.waiting
            if waiting and roster.hungry:
                deal(self._backlog, roster, actions)
                waiting = self._backlog.waiting
            self._set_alarm(actions)
        if roster.idle:
            if not self._stop and roster.unstarted:
                recall(roster, actions)
            # What was only sent may yet be recalled for them.
            let_go(roster, 0 if self._stop else waiting + roster.unstarted + _SPARES, actions)

    def _set_alarm(self, actions: list[Action]) -> None:
        due = self._backlog.next_due()
        if due is not None and (self._alarm is None or due < self._alarm):
            self._alarm = due
            actions.append(Alarm(due))

    def _finish_if_over(self, actions: list[Action]) -> None:
        if (self._stop or not self._backlog.unsettled) and not self._roster.busy():
            self._finished = True
            for member in self._roster:
                release_worker(self._roster, member, actions)
            actions.append(Finished())
