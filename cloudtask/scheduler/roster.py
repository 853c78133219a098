"""The workers as the scheduler sees them: what each has in flight, and who could take more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cloudtask.model import Attempt

# What is known of an attempt in flight; 0 is: sent.
STARTED = 1
CANCELLED = 2
"""Superseded: told to end; how it ends decides nothing any more, unless it was a success that nobody else had."""


class Worker:
    """One worker.  ``credit`` is how many more attempts it asked for; ``unstarted`` how many it has only been sent."""

    __slots__ = (
        "alone", "credit", "flights", "joined", "number", "recalled", "released", "retiring", "silent", "strikes", "unstarted", "usable",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.joined = False
        self.silent = False
        self.retiring = False
        self.released = False
        self.usable = False
        self.credit = 0
        self.strikes = 0
        self.unstarted = 0
        self.recalled = 0
        self.alone: Attempt | None = None
        self.flights: dict[Attempt, int] = {}

    def recallable(self) -> int:
        """How many attempts it could give back: half of those that it has not started.

        The last one stays where nothing is started, or two idle workers could hand one job to and fro.
        """
        if self.recalled or not self.unstarted:
            return 0
        busy = len(self.flights) > self.unstarted
        return (self.unstarted + busy) // 2


class Roster:
    """All workers, with those that are ``hungry`` (want more) and ``idle`` (have nothing) at hand, both by number."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}
        self.hungry: dict[int, Worker] = {}
        self.idle: dict[int, Worker] = {}
        self.usable = 0
        """How many may be sent something."""
        self.unstarted = 0
        """Attempts that were only sent, on usable workers."""
        self.recalled = 0
        """Attempts that were asked back and have not come."""
        self._contested: dict[int, list[tuple[int, Attempt]]] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __getitem__(self, number: int) -> Worker:
        return self._workers[number]

    def get(self, number: int) -> Worker | None:
        """The worker of that number, if there is one."""
        return self._workers.get(number)

    def enter(self, number: int) -> Worker:
        """The worker of that number, made known where it is not."""
        return self._workers.get(number) or self._workers.setdefault(number, Worker(number))

    def leave(self, worker: Worker) -> None:
        """Forget a worker that has nothing in flight, or nothing that matters."""
        worker.joined = False
        self.refresh(worker)
        self.recall(worker, 0)
        for attempt in list(worker.flights):
            self.land(worker, attempt)
        del self._workers[worker.number]

    def refresh(self, worker: Worker) -> None:
        """Sort a worker that was changed in among the usable, hungry and idle ones."""
        usable = worker.joined and not (worker.silent or worker.retiring or worker.released)
        if usable is not worker.usable:
            worker.usable = usable
            self.usable += 1 if usable else -1
            self.unstarted += worker.unstarted if usable else -worker.unstarted
        if usable and worker.credit > 0 and worker.alone is None:
            self.hungry[worker.number] = worker
        else:
            self.hungry.pop(worker.number, None)
        if usable and not worker.flights:
            self.idle[worker.number] = worker
        else:
            self.idle.pop(worker.number, None)

    def recall(self, worker: Worker, count: int) -> None:
        """So many attempts were asked back (0: it answered, or never will)."""
        self.recalled += count - worker.recalled
        worker.recalled = count

    def busy(self) -> bool:
        """True while a worker that is in contact has something in flight."""
        return any(worker.flights and not worker.silent for worker in self)

    # --- attempts ----------------------------------------------------------------------------------------------------

    def launch(self, worker: Worker, attempts: Iterable[Attempt], flags: int = 0) -> None:
        """These are in flight on a worker now."""
        before = len(worker.flights)
        for attempt in attempts:
            worker.flights[attempt] = flags
            if self._contested and attempt.job in self._contested:
                self._contested[attempt.job].append((worker.number, attempt))
        if not flags:
            self._count_unstarted(worker, len(worker.flights) - before)
        self.refresh(worker)

    def mark(self, worker: Worker, attempt: Attempt, flag: int) -> None:
        """An attempt in flight was started, or cancelled."""
        if not worker.flights[attempt]:
            self._count_unstarted(worker, -1)
        worker.flights[attempt] |= flag

    def land(self, worker: Worker, attempt: Attempt) -> int | None:
        """An attempt is no longer in flight; returns its flags, None where it was not."""
        flags = worker.flights.pop(attempt, None)
        if flags is None:
            return None
        if not flags:
            self._count_unstarted(worker, -1)
        if worker.alone == attempt:
            worker.alone = None
            self.refresh(worker)
        elif not worker.flights:
            self.refresh(worker)
        if self._contested and attempt.job in self._contested:
            self._uncontest(worker.number, attempt)
        return flags

    def _count_unstarted(self, worker: Worker, more: int) -> None:
        worker.unstarted += more
        if worker.usable:
            self.unstarted += more
        if worker.recalled and not worker.unstarted:
            self.recall(worker, 0)

    # --- jobs with several attempts ----------------------------------------------------------------------------------

    def contest(self, job: int, highest: int) -> None:
        """From now on the job may have several attempts in flight, numbered up to ``highest``: keep track of them all."""
        if job not in self._contested:
            numbered = [Attempt(job, number) for number in range(1, highest + 1)]
            self._contested[job] = [(worker.number, attempt) for worker in self for attempt in numbered if attempt in worker.flights]

    def is_contested(self, job: int) -> bool:
        """True while a job that had several attempts has one in flight, a cancelled one included."""
        return job in self._contested

    def contest_all(self, worker: Worker) -> None:
        """The same for all jobs of a worker that have one attempt only: that is the one it has.

        Not for what it was adopted with of settled jobs, which is cancelled: there may be more of that elsewhere.
        """
        for attempt, flags in worker.flights.items():
            if not flags & CANCELLED and attempt.job not in self._contested:
                self._contested[attempt.job] = [(worker.number, attempt)]

    def _uncontest(self, number: int, attempt: Attempt) -> None:
        attempts = self._contested[attempt.job]
        attempts.remove((number, attempt))
        if not attempts:
            del self._contested[attempt.job]

    def rivals(self, job: int) -> list[tuple[Worker, Attempt]]:
        """The attempts of a contested job that are in flight and not cancelled."""
        contested = self._contested.get(job)
        if not contested:
            return []
        found = ((self._workers[number], attempt) for number, attempt in contested)
        return [(worker, attempt) for worker, attempt in found if not worker.flights[attempt] & CANCELLED]
