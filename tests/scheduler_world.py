"""A simulated world around the scheduler: workers whose news come late, out of order, twice or never, and what must always hold.

The world does what the scheduler says, keeps its own books of what really ran and what was told, and asserts after every event
that the two agree.  It knows nothing of how the scheduler decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cloudtask.model import Attempt
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

FAILURES = (Ending.EXIT, Ending.SIGNAL, Ending.OOM, Ending.TIMEOUT, Ending.UNSTARTED)


class News(NamedTuple):
    """Something that a worker says: ``what`` is started, ended, or returned (with no attempt: nothing to return)."""

    what: str
    attempt: Attempt | None
    ending: Ending = Ending.EXIT
    value: int = 0


class Job:
    """What the world knows of one job: how it stands as far as the scheduler was told."""

    def __init__(self) -> None:
        self.outcome: bool | None = None
        self.highest = 0
        self.failures = 0
        self.losses = 0
        self.burned: set[int] = set()
        """Attempts that may have run: with at most once, none may follow them."""
        self.failed_on: int | None = None
        self.due = 0.0


class Site:
    """One worker: what is really there, and what of it the scheduler was not told yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: list[Attempt] = []
        self.running: list[Attempt] = []
        self.news: list[News] = []
        self.told: list[News] = []
        self.joined = True
        self.silent = False
        self.draining = False
        self.released = False
        self.credit = 0
        self.strikes = 0
        self.alone: Attempt | None = None
        self.flights: dict[Attempt, bool] = {}
        """What the scheduler believes to be here; True once it was told that it started."""
        self.cancelled: set[Attempt] = set()

    @property
    def usable(self) -> bool:
        """It may be sent something."""
        return self.joined and not (self.silent or self.draining or self.released)


class World:
    """Scheduler, sites and jobs."""

    def __init__(self, policy: Policy, total: int) -> None:
        self.policy = policy
        self.jobs = {number: Job() for number in range(1, total + 1)}
        self.sites: dict[int, Site] = {}
        self.now = 0.0
        self.alarm: float | None = None
        self.joined = 0
        self.finished = self.stopped = self.aborted = False
        self.failed_here = 0
        self.scheduler = Scheduler(policy, total)

    # --- doing what the scheduler says -------------------------------------------------------------------------------

    def act(self, actions: list[Action]) -> None:
        """Do it, and check that it was right to say it."""
        for action in actions:
            self._acts[type(action)](self, action)
        self.check()

    def _send(self, action: Send) -> None:
        site = self.sites[action.worker]
        assert site.usable, "sent to a worker that takes nothing"
        assert not self.finished and not self.stopped
        assert 0 < len(action.attempts) <= site.credit
        site.credit -= len(action.attempts)
        for attempt in action.attempts:
            self._check_sent(site, attempt)
            site.flights[attempt] = False
            site.queue.append(attempt)

    def _check_sent(self, site: Site, attempt: Attempt) -> None:
        job = self.jobs[attempt.job]
        assert job.outcome is None, "a settled job was sent"
        assert attempt.number > job.highest, "attempt numbers must rise"
        job.highest = attempt.number
        for other in self.sites.values():
            for rival in other.flights:
                if rival.job == attempt.job:
                    assert other.silent or rival in other.cancelled, "a second attempt outside the lost-contact race"
        assert not (self.policy.at_most_once and job.burned), "sent again what may have run"
        assert job.failed_on != site.number or self.now >= job.due, "the same worker must wait for the delay"
        job.failed_on = None
        assert site.alone is None, "sent to a worker that runs a suspect"
        if job.losses >= self.policy.poison_after - 1:
            assert not site.flights, "a suspect must run alone"
            site.alone = attempt

    def _settled(self, action: Settled) -> None:
        job = self.jobs[action.job]
        assert job.outcome is None, "settled twice"
        job.outcome = action.succeeded
        self.failed_here += not action.succeeded
        if action.ending is Ending.POISON:
            assert job.losses >= self.policy.poison_after
        elif action.ending is Ending.UNKNOWN:
            assert self.policy.at_most_once
        elif not action.succeeded:
            assert job.failures == self.policy.retries + 1, "settled badly with retries left"
        if self.policy.halt and self.policy.halts(self.failed_here, len(self.jobs)):
            self.stopped = True
            self.aborted = self.aborted or self.policy.halt.now

    def _will_retry(self, action: WillRetry) -> None:
        job = self.jobs[action.job]
        assert job.outcome is None
        assert action.failures == job.failures <= action.of == self.policy.retries
        job.due = self.now + action.delay

    def _back(self, action: BackToQueue) -> None:
        assert self.jobs[action.job].outcome is None
        assert self.scheduler.state(action.job) in (JobState.PENDING, JobState.ACTIVE)

    def _cancel(self, action: Cancel) -> None:
        site = self.sites[action.worker]
        for attempt in action.attempts:
            assert attempt in site.flights, "cancelled what is not there"
            if action.why is Ending.SUPERSEDED:
                site.cancelled.add(attempt)
            if site.silent:
                continue
            if attempt in site.queue:
                site.queue.remove(attempt)
                site.news.append(News("returned", attempt))
            elif attempt in site.running:
                site.running.remove(attempt)
                site.news.append(News("ended", attempt, action.why))

    def _recall(self, action: Recall) -> None:
        site = self.sites[action.worker]
        back = site.queue[max(0, len(site.queue) - action.count) :]
        del site.queue[len(site.queue) - len(back) :]
        site.news += [News("returned", attempt) for attempt in back] or [News("returned", None)]

    def _retire(self, action: RetireWorker) -> None:
        site = self.sites[action.worker]
        assert site.strikes == action.strikes == self.policy.strikes
        site.draining = True

    def _release(self, action: ReleaseWorker) -> None:
        site = self.sites[action.worker]
        assert not site.released, "released twice"
        assert all(self.jobs[attempt.job].outcome is not None for attempt in site.flights) or self.stopped
        assert not site.flights or site.silent
        site.released = True

    def _alarm(self, action: Alarm) -> None:
        self.alarm = action.at if self.alarm is None else min(action.at, self.alarm)

    def _finish(self, action: Finished) -> None:
        assert not self.finished, "finished twice"
        assert self.stopped or all(job.outcome is not None for job in self.jobs.values())
        assert not any(site.flights and not site.silent for site in self.sites.values())
        self.finished = True

    def _ignored(self, action: Ignored) -> None:
        assert action.attempt not in self.sites[action.worker].flights, "a true word was ignored"

    _acts: dict[type, Callable[[World, Any], None]] = {
        Send: _send, Settled: _settled, WillRetry: _will_retry, BackToQueue: _back, Cancel: _cancel, Recall: _recall,
        RetireWorker: _retire, ReleaseWorker: _release, Alarm: _alarm, Finished: _finish, Ignored: _ignored,
    }  # fmt: skip

    # --- telling the scheduler ---------------------------------------------------------------------------------------

    def join(self) -> Site:
        """A new worker."""
        self.joined += 1
        site = self.sites[self.joined] = Site(self.joined)
        self.act(self.scheduler.worker_joined(site.number, self.now))
        return site

    def hear_again(self, site: Site) -> None:
        """A silent worker answers; one that this run has not had yet joins by that."""
        site.silent = False
        if site.joined:
            self.act(self.scheduler.contact_back(site.number, self.now))
        else:
            site.joined = True
            self.act(self.scheduler.worker_joined(site.number, self.now))

    def pull(self, site: Site, count: int) -> None:
        """It wants more."""
        site.credit += count
        self.act(self.scheduler.pull(site.number, count, self.now))

    def tell(self, site: Site, news: News) -> None:
        """The scheduler hears something from a worker; the books are brought up to date first, as an ``ended`` may settle its job."""
        site.told.append(news)
        number, now = site.number, self.now
        if news.what == "started":
            assert news.attempt
            self._start(site, news.attempt)
            self.act(self.scheduler.started(number, [news.attempt], now))
        elif news.what == "returned":
            if news.attempt:
                self._land(site, news.attempt, may_have_run=False)
            self.act(self.scheduler.returned(number, [news.attempt] if news.attempt else [], now))
        else:
            assert news.attempt
            self._end(site, news)
            self.act(self.scheduler.ended(number, news.attempt, news.ending, news.value, now))

    def _start(self, site: Site, attempt: Attempt) -> None:
        if attempt in site.flights:
            site.flights[attempt] = True

    def _land(self, site: Site, attempt: Attempt, may_have_run: bool) -> bool:
        """An attempt is over, as far as the scheduler was told; False where it was not in flight."""
        if site.flights.pop(attempt, None) is None:
            return False
        site.alone = None if site.alone == attempt else site.alone
        if may_have_run:
            self.jobs[attempt.job].burned.add(attempt.number)
        return True

    def _end(self, site: Site, news: News) -> None:
        assert news.attempt
        if not self._land(site, news.attempt, may_have_run=True):
            return
        job = self.jobs[news.attempt.job]
        good = news.ending is Ending.EXIT and news.value == 0
        if news.ending in FAILURES:
            site.strikes = 0 if good else site.strikes + 1
            if not good and job.outcome is None and news.attempt not in site.cancelled:
                job.failures += 1
                job.failed_on, job.due = site.number, float("inf")

    def lose(self, site: Site, attempts: list[Attempt], counts: bool) -> None:
        """They are gone for good."""
        for attempt in attempts:
            started = site.flights.get(attempt)
            if self._land(site, attempt, may_have_run=True) and started and counts and attempt not in site.cancelled:
                self.jobs[attempt.job].losses += self.jobs[attempt.job].outcome is None and not self.policy.at_most_once
        site.queue = [attempt for attempt in site.queue if attempt not in attempts]
        site.running = [attempt for attempt in site.running if attempt not in attempts]
        self.act(self.scheduler.lost(site.number, attempts, self.now, counts))

    def leave(self, site: Site) -> None:
        """The worker and its supervisor are gone."""
        assert not site.flights or self.finished
        del self.sites[site.number]
        self.act(self.scheduler.worker_left(site.number, self.now))

    def retire(self, site: Site) -> None:
        """SIGTERM to its supervisor: all that it has ends or comes back."""
        site.draining = True
        self.act(self.scheduler.retire(site.number, self.now))
        if not site.silent:
            site.news += [News("returned", attempt) for attempt in site.queue]
            site.news += [News("ended", attempt, Ending.ABORTED) for attempt in site.running]
            site.queue, site.running = [], []

    def tick(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds
        if self.alarm is not None and self.now >= self.alarm:
            self.alarm = None
            self.act(self.scheduler.tick(self.now))

    # --- what always holds -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The books agree, and nobody is idle for nothing."""
        scheduler, jobs = self.scheduler, self.jobs
        for number, site in self.sites.items():
            assert set(scheduler.in_flight(number)) == set(site.flights)
        outcomes = [job.outcome for job in jobs.values()]
        assert (scheduler.succeeded, scheduler.failed) == (outcomes.count(True), outcomes.count(False))
        flying = {attempt.job for site in self.sites.values() for attempt in site.flights if attempt not in site.cancelled}
        for number, job in jobs.items():
            assert (scheduler.state(number) >= JobState.SUCCEEDED) == (job.outcome is not None)
            assert self.finished or scheduler.state(number) != JobState.ACTIVE or number in flying, "an active job that nobody has"
            assert job.outcome is not None or number not in flying or scheduler.state(number) == JobState.ACTIVE
        if not (self.finished or self.stopped):
            self._check_nobody_idles()

    def _check_nobody_idles(self) -> None:
        for site in self.sites.values():
            if site.usable and site.credit and not site.flights:
                for number, job in self.jobs.items():
                    waits = job.failed_on is not None and self.now < job.due and (job.failed_on == site.number or job.losses > 1)
                    assert self.scheduler.state(number) != JobState.PENDING or waits, f"worker {site.number} idles beside job {number}"
