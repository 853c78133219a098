"""What a supervisor knows of the attempts that its worker has, and what it believes of what the worker says about them.

A worker is not trusted: whatever it sends about an attempt that it does not hold, or a move that is not allowed, is dropped.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Iterable, Sequence

from cloudtask.model import Attempt, Result
from cloudtask.states import Ending
from cloudtask.workers.worker_log import Segment, WorkerLog, add_segment

_ENDINGS = {ending.value: ending for ending in Ending}
# What an agent may claim: the others are for the controller to conclude.
_CLAIMS = frozenset({Ending.EXIT, Ending.SIGNAL, Ending.OOM, Ending.TIMEOUT, Ending.ABORTED, Ending.SUPERSEDED, Ending.UNSTARTED})


class Flight:
    """One attempt that the worker holds."""

    __slots__ = (
        "announced", "attempt", "began", "code", "crc", "file", "known", "label", "log_slot", "received", "segments", "slot", "started",
    )  # fmt: skip

    def __init__(self, attempt: Attempt, code: bytes, label: str) -> None:
        self.attempt = attempt
        self.code = code
        self.label = label
        self.known = False
        """The agent has said that it has it."""
        self.started = False
        self.announced = False
        self.slot = 0
        self.log_slot = 0
        """Whose log has its output, from the first piece on: what an earlier supervisor left is sent before its slot is told."""
        self.began = 0.0
        self.file = ""
        self.received = [0, 0]
        self.crc = [0, 0]
        self.segments: list[Segment] = []


class Ledger:
    """The attempts of one worker, and the worker log that their output goes to."""

    def __init__(self, log: WorkerLog) -> None:
        self._log = log
        self._flights: dict[tuple[int, int], Flight] = {}
        self._durations: deque[float] = deque(maxlen=32)
        self._waiting: dict[int, deque[Flight]] = {}
        self.failing = False
        """The last job to end did not succeed."""

    def __len__(self) -> int:
        return len(self._flights)

    def attempts(self) -> list[Attempt]:
        """All attempts that the worker holds, oldest first."""
        return [flight.attempt for flight in self._flights.values()]

    def find(self, key: tuple[int, int]) -> Flight | None:
        """The flight of an attempt, if the worker holds it."""
        return self._flights.get(key)

    def add(self, attempt: Attempt, code: bytes, label: str) -> Flight:
        """The worker is given this attempt."""
        flight = self._flights[attempt] = Flight(attempt, code, label)
        return flight

    def drop(self, keys: Iterable[Sequence[int]]) -> list[Attempt]:
        """The worker no longer holds these; returns those that it did."""
        dropped = []
        for job, number in keys:
            flight = self._flights.pop((job, number), None)
            if flight is not None:
                dropped.append(flight.attempt)
                self._leave_slot(flight)
        return dropped

    def start(self, job: int, number: int, slot: int) -> Flight | None:
        """The worker says that it started an attempt; None where that cannot be."""
        flight = self._flights.get((job, number))
        if flight is None or flight.started:
            return None
        flight.started = flight.known = True
        flight.slot = slot
        flight.began = time.time()
        self._waiting.setdefault(slot, deque()).append(flight)
        self._announce(slot)
        return flight

    def _announce(self, slot: int) -> None:
        """Log the start of the attempt whose turn it is in a slot's log.

        A slot is given to the next job as soon as one is over, whose output may still be on its way: each job's lines stay together.
        """
        flight = self._waiting[slot][0]
        if not flight.announced and flight.attempt.job > 0:
            self._log.status(slot, flight.label)
        flight.announced = True

    def output(self, flight: Flight, stream: int, position: int, data: bytes) -> tuple[str, int] | None:
        """Take in a piece of output; returns the file and offset, None for what came twice."""
        skip = flight.received[stream - 1] - position
        if skip < 0:
            raise ValueError(f"output of job {flight.attempt.job} has a gap")
        if skip:
            data = data[skip:]
        if not data:
            return None
        if not flight.file:
            flight.log_slot = max(flight.slot, 0)
        file, offset = self._log.output(flight.log_slot, data)
        flight.file = file
        add_segment(flight.segments, stream, offset, len(data))
        flight.received[stream - 1] += len(data)
        flight.crc[stream - 1] = zlib.crc32(data, flight.crc[stream - 1])
        return file, offset

    def end(self, row: Sequence[object]) -> tuple[Flight, Result] | None:
        """The worker says how an attempt ended, after all of its output; None where it does not hold it.

        Raises ValueError for a claim that cannot be.
        """
        job, number, slot, ending_word, value, seconds, cpu, memory = row[:8]
        flight = self._flights.get((_whole(job), _whole(number)))
        if flight is None:
            return None
        ending = _ENDINGS[str(ending_word)]
        if ending not in _CLAIMS:
            raise ValueError(f"a worker cannot say {ending}")
        if not flight.started:
            self.start(flight.attempt.job, flight.attempt.number, _whole(slot))
        elapsed = _number(seconds)
        span = self._log.span(flight.file or self._log.name_of(flight.slot), flight.segments, flight.attempt)
        result = Result(
            flight.attempt.job, flight.attempt.number, ending, _whole(value), flight.began,
            elapsed, _number(cpu), _whole(memory), flight.slot, bool(row[12]), span,
        )  # fmt: skip
        del self._flights[flight.attempt]
        if flight.attempt.job > 0:
            self._durations.append(elapsed)
            self.failing = not result.succeeded
            self._log.status(flight.slot, f"{result.status()} # {flight.label}")
        self._leave_slot(flight)
        return flight, result

    def _leave_slot(self, flight: Flight) -> None:
        waiting = self._waiting.get(flight.slot)
        if waiting and flight in waiting:
            waiting.remove(flight)
            if waiting:
                self._announce(flight.slot)

    def appetite(self, slots: int, horizon: float) -> int:
        """How many jobs to hold beyond the slots: as many as recent ones fit in ``horizon`` seconds, none for long jobs."""
        if not self._durations:
            return 0
        mean = max(sum(self._durations) / len(self._durations), 0.0005)
        # The longest recent one decides whether jobs are short at all: nobody hoards behind a long job.
        if max(self._durations) > horizon:
            return 0
        return min(int(horizon * slots / mean), 2000)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 62) < value < (1 << 62):
        raise ValueError("not a whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
        raise ValueError("not a number of seconds")
    return float(value)
