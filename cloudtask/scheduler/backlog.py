"""The jobs: where each stands, and in what order those that wait are taken.

Small for a million jobs: one byte and one number each.  The fresh ones are not listed anywhere, a cursor walks the bytes; only
what failed, came back or is in doubt stands in a dictionary or heap.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cloudtask.model import Attempt
from cloudtask.states import JobState

# Where a job stands, in one byte: finer than JobState, since a pending one waits in one of four places.
FRESH, ACTIVE, SUCCEEDED, FAILED, BACK, RETRY, ALONE, _NO_JOB = range(8)
_STATES = (
    JobState.PENDING, JobState.ACTIVE, JobState.SUCCEEDED, JobState.FAILED, JobState.PENDING, JobState.PENDING, JobState.PENDING,
)  # fmt: skip

Numbers = Mapping[int, int] | Sequence[int]
"""A number for each job: a mapping, or a sequence with the job's number as index (0 is nobody's)."""


def by_job(numbers: Numbers) -> Iterator[tuple[int, int]]:
    """``(job, number)`` of all that are not 0."""
    pairs: Iterable[tuple[int, int]] = numbers.items() if isinstance(numbers, Mapping) else enumerate(numbers)
    return ((job, number) for job, number in pairs if number)


class _Wait(NamedTuple):
    """A retry that waits: until ``due``, or for another worker than the one that failed; ``alone`` for an idle one only."""

    due: float
    worker: int
    alone: bool


class Backlog:
    """All jobs of the session, numbered from 1."""

    def __init__(self, total: int, settled: Iterable[tuple[int, bool]], attempts: Numbers) -> None:
        self._places = bytearray(total + 1)
        self._places[0] = _NO_JOB
        self._counts = [total, 0, 0, 0, 0, 0, 0]
        self._attempts = array("I", bytes(4 * (total + 1)))
        self._cursor = 1
        self._back: list[int] = []
        self._alone: list[int] = []
        self._waits: dict[int, _Wait] = {}
        self._timers: list[tuple[float, int]] = []
        self._overdue: OrderedDict[int, None] = OrderedDict()
        # The retries that wait, by the worker that failed: each is for all others at once.
        self._failed_on: dict[int, OrderedDict[int, None]] = {}
        # Jobs in doubt, to be run once more; by whether that must be alone.
        self._replacements: tuple[OrderedDict[int, None], OrderedDict[int, None]] = (OrderedDict(), OrderedDict())
        for job, succeeded in settled:
            self._move(job, SUCCEEDED if succeeded else FAILED)
        for job, number in by_job(attempts):
            self._attempts[job] = number

    # --- looking -----------------------------------------------------------------------------------------------------

    def __contains__(self, job: int) -> bool:
        return 0 < job < len(self._places)

    @property
    def total(self) -> int:
        """All jobs of the session."""
        return len(self._places) - 1

    @property
    def active(self) -> int:
        """Jobs with an attempt under way, or in doubt."""
        return self._counts[ACTIVE]

    @property
    def succeeded(self) -> int:
        """Jobs settled well."""
        return self._counts[SUCCEEDED]

    @property
    def failed(self) -> int:
        """Jobs settled badly."""
        return self._counts[FAILED]

    @property
    def pending(self) -> int:
        """Jobs neither settled nor under way."""
        return self.total - self._counts[ACTIVE] - self._counts[SUCCEEDED] - self._counts[FAILED]

    @property
    def unsettled(self) -> int:
        """Jobs that are not over."""
        return self.total - self._counts[SUCCEEDED] - self._counts[FAILED]

    @property
    def waiting(self) -> int:
        """Attempts that somebody must still be sent: pending jobs, and replacements for what is in doubt."""
        return self.pending + len(self._replacements[0]) + len(self._replacements[1])

    @property
    def has_lonely(self) -> bool:
        """Some job waits for a worker of its own."""
        return bool(self._counts[ALONE] or self._replacements[True])

    def state(self, job: int) -> JobState:
        """Where a job stands."""
        return _STATES[self._places[job]]

    def is_settled(self, job: int) -> bool:
        """True when it is over."""
        return self._places[job] in (SUCCEEDED, FAILED)

    def is_active(self, job: int) -> bool:
        """True when an attempt is under way, or in doubt."""
        return self._places[job] == ACTIVE

    def highest_attempt(self, job: int) -> int:
        """The number of its last attempt; 0 before the first."""
        return self._attempts[job]

    # --- putting -----------------------------------------------------------------------------------------------------

    def settle(self, job: int, succeeded: bool) -> None:
        """It is over, wherever it stood."""
        self._unqueue(job)
        self._move(job, SUCCEEDED if succeeded else FAILED)

    def adopt(self, attempt: Attempt) -> None:
        """An attempt that is under way already: its job is not to be sent."""
        self._attempts[attempt.job] = max(self._attempts[attempt.job], attempt.number)
        self._unqueue(attempt.job)
        self._move(attempt.job, ACTIVE)

    def set_apart(self, job: int) -> None:
        """A fresh job must run alone on its worker: earlier runs have lost it too often."""
        if self._places[job] == FRESH:
            self._move(job, ALONE)
            heapq.heappush(self._alone, job)

    def put_back(self, job: int, alone: bool) -> None:
        """An active job waits again, before the fresh ones, or for an idle worker."""
        self.withdraw_replacement(job)
        self._move(job, ALONE if alone else BACK)
        heapq.heappush(self._alone if alone else self._back, job)

    def retry(self, job: int, worker: int, due: float, alone: bool) -> None:
        """An active job failed on ``worker``, which may have it again at ``due``."""
        self.withdraw_replacement(job)
        self._move(job, RETRY)
        self._waits[job] = _Wait(due, worker, alone)
        heapq.heappush(self._timers, (due, job))
        if not alone:
            self._failed_on.setdefault(worker, OrderedDict())[job] = None

    def replace(self, job: int, alone: bool) -> None:
        """An active job is in doubt: run it once more when nothing better is left."""
        self._replacements[not alone].pop(job, None)
        self._replacements[alone][job] = None

    def withdraw_replacement(self, job: int) -> None:
        """The job is not in doubt any more."""
        for queue in self._replacements:
            queue.pop(job, None)

    def _move(self, job: int, place: int) -> None:
        self._counts[self._places[job]] -= 1
        self._counts[place] += 1
        self._places[job] = place

    def _unqueue(self, job: int) -> None:
        """Take a job out of what it waits in.  The heaps keep it, and pass over what its place byte no longer says."""
        place = self._places[job]
        if place == RETRY:
            self._end_wait(job)
            self._overdue.pop(job, None)
        elif place == ACTIVE and (self._replacements[0] or self._replacements[1]):
            self.withdraw_replacement(job)

    def _end_wait(self, job: int) -> bool:
        """Forget a retry's timer; returns whether it must run alone."""
        wait = self._waits.pop(job, None)
        if wait is None:
            return False
        others = self._failed_on.get(wait.worker)
        if others is not None:
            others.pop(job, None)
            if not others:
                del self._failed_on[wait.worker]
        return wait.alone

    # --- time --------------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """When the next retry is due."""
        timers = self._timers
        while timers and not self._is_timed(*timers[0]):
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def _is_timed(self, due: float, job: int) -> bool:
        wait = self._waits.get(job)
        return wait is not None and wait.due == due

    def wake(self, now: float) -> None:
        """Retries whose delay is over are for any worker."""
        while (due := self.next_due()) is not None and due <= now:
            job = heapq.heappop(self._timers)[1]
            if self._end_wait(job):
                self._move(job, ALONE)
                heapq.heappush(self._alone, job)
            else:
                self._overdue[job] = None

    # --- taking ------------------------------------------------------------------------------------------------------

    def take(self, worker: int, count: int) -> list[Attempt]:
        """Up to ``count`` new attempts for ``worker``: retries, then what came back, then fresh ones, then replacements."""
        jobs: list[int] = []
        counts = self._counts
        if counts[RETRY]:
            self._take_retries(jobs, worker, count)
        if counts[BACK]:
            self._take_heap(jobs, self._back, BACK, count)
        if counts[FRESH]:
            self._take_fresh(jobs, count)
        while self._replacements[False] and len(jobs) < count:
            jobs.append(self._replacements[False].popitem(last=False)[0])
        return [self._begin(job) for job in jobs]

    def take_lonely(self) -> Attempt | None:
        """A new attempt that must run alone on its worker."""
        jobs: list[int] = []
        self._take_heap(jobs, self._alone, ALONE, 1)
        if not jobs and self._replacements[True]:
            jobs.append(self._replacements[True].popitem(last=False)[0])
        return self._begin(jobs[0]) if jobs else None

    def _begin(self, job: int) -> Attempt:
        number = self._attempts[job] = self._attempts[job] + 1
        return Attempt(job, number)

    def _take_retries(self, jobs: list[int], worker: int, count: int) -> None:
        while self._overdue and len(jobs) < count:
            job = self._overdue.popitem(last=False)[0]
            self._move(job, ACTIVE)
            jobs.append(job)
        while len(jobs) < count:
            # At most two steps: there is one entry for each worker.
            other = next((failed for failed in self._failed_on if failed != worker), None)
            if other is None:
                return
            job = next(iter(self._failed_on[other]))
            self._end_wait(job)
            self._move(job, ACTIVE)
            jobs.append(job)

    def _take_heap(self, jobs: list[int], heap: list[int], place: int, count: int) -> None:
        while heap and len(jobs) < count:
            job = heapq.heappop(heap)
            if self._places[job] == place:
                self._move(job, ACTIVE)
                jobs.append(job)

    def _take_fresh(self, jobs: list[int], count: int) -> None:
        places, cursor, taken = self._places, self._cursor, 0
        wanted = count - len(jobs)
        while taken < wanted:
            job = places.find(FRESH, cursor)
            if job < 0:
                break
            places[job] = ACTIVE
            jobs.append(job)
            cursor = job + 1
            taken += 1
        self._cursor = cursor
        self._counts[FRESH] -= taken
        self._counts[ACTIVE] += taken
