"""What becomes of a job when one of its attempts ends, fails, comes back or is lost."""

from __future__ import annotations

from collections.abc import Iterable

from cloudtask.model import Attempt
from cloudtask.scheduler.actions import Action, BackToQueue, Cancel, Settled, WillRetry
from cloudtask.scheduler.backlog import Backlog, Numbers, by_job
from cloudtask.scheduler.policy import Policy
from cloudtask.scheduler.roster import CANCELLED, STARTED, Roster, Worker
from cloudtask.states import Ending


class Fates:
    """Decides for one job at a time.  The attempts it is told of have left their workers' flights already."""

    def __init__(self, policy: Policy, backlog: Backlog, roster: Roster, failures: Numbers, losses: Numbers) -> None:
        self._policy = policy
        self._backlog = backlog
        self._roster = roster
        self._failures = dict(by_job(failures))
        self._losses = dict(by_job(losses))
        for job in self._losses:
            if self._must_run_alone(job):
                backlog.set_apart(job)
        self.failed_here = 0
        """Jobs settled badly in this run."""
        self.timeouts = 0
        """Those of them that timed out."""

    @property
    def halted(self) -> bool:
        """As many jobs failed as the user wants to see."""
        return self._policy.halts(self.failed_here, self._backlog.total)

    def settle(self, attempt: Attempt, succeeded: bool, ending: Ending, actions: list[Action]) -> None:
        """The first attempt to end wins; what else its job has in flight is ended, and how is of no interest then."""
        job = attempt.job
        if self._backlog.is_settled(job):
            return
        self._backlog.settle(job, succeeded)
        self._failures.pop(job, None)
        self._losses.pop(job, None)
        actions.append(Settled(job, attempt.number, succeeded, ending))
        self.supersede(self._roster.rivals(job), actions)
        if not succeeded:
            self.failed_here += 1
            self.timeouts += ending is Ending.TIMEOUT

    def fail(self, worker: int, attempt: Attempt, flags: int, ending: Ending, *, now: float, actions: list[Action]) -> None:
        """It ended badly on ``worker``: once more, or over."""
        job = attempt.job
        if self._backlog.is_settled(job):
            return
        if flags & CANCELLED and not self._policy.at_most_once:
            # Another attempt ended before it, or was preferred to it: one failure of a job burns one retry.
            self.secure(job, actions)
            return
        failures = self._failures.get(job, 0) + 1
        if failures > self._policy.retries:
            self.settle(attempt, False, ending, actions)
            return
        self._failures[job] = failures
        self.supersede(self._roster.rivals(job), actions)
        delay = self._policy.delay(job, failures)
        self._backlog.retry(job, worker, now + delay, self._must_run_alone(job))
        actions.append(WillRetry(job, failures, self._policy.retries, delay))

    def come_back(self, attempt: Attempt, may_have_run: bool, actions: list[Action]) -> None:
        """It was returned, or ended by us: that burns nothing."""
        if self._policy.at_most_once and may_have_run:
            self._give_up(attempt, Ending.UNKNOWN, actions)
        self.secure(attempt.job, actions)

    def lose(self, attempt: Attempt, flags: int, counts: bool, actions: list[Action]) -> None:
        """It went away with its agent or machine; for good."""
        job = attempt.job
        if self._policy.at_most_once:
            self._give_up(attempt, Ending.UNKNOWN, actions)
        elif flags & STARTED and not flags & CANCELLED and counts and not self._backlog.is_settled(job):
            self._losses[job] = losses = self._losses.get(job, 0) + 1
            if losses >= self._policy.poison_after:
                self._give_up(attempt, Ending.POISON, actions)
        self.secure(job, actions)

    def _give_up(self, attempt: Attempt, ending: Ending, actions: list[Action]) -> None:
        """Nobody may try again; but one that still runs may do better."""
        if self._backlog.is_active(attempt.job) and not self._roster.rivals(attempt.job):
            self.settle(attempt, False, ending, actions)

    def secure(self, job: int, actions: list[Action]) -> None:
        """See to it that somebody runs an active job: queue it where nobody does, or a replacement where all who do are silent."""
        if not self._backlog.is_active(job):
            return
        rivals = self._roster.rivals(job)
        if not rivals:
            if self._policy.at_most_once and self._roster.is_contested(job):
                return
            self._backlog.put_back(job, self._must_run_alone(job))
            actions.append(BackToQueue(job))
        elif not self._policy.at_most_once and all(worker.silent for worker, _ in rivals):
            self._backlog.replace(job, self._must_run_alone(job))

    def supersede(self, attempts: Iterable[tuple[Worker, Attempt]], actions: list[Action]) -> None:
        """Another attempt of their job counts."""
        for worker, attempt in attempts:
            self._roster.mark(worker, attempt, CANCELLED)
            actions.append(Cancel(worker.number, [attempt], Ending.SUPERSEDED))

    def _must_run_alone(self, job: int) -> bool:
        return self._policy.must_run_alone(self._losses.get(job, 0))
