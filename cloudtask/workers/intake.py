"""What an agent says about its attempts, checked against the ledger and turned into messages for the main process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from cloudtask.model import Attempt, Result
from cloudtask.workers import messages as m
from cloudtask.workers.ledger import Ledger


class Intake:
    """Takes in the frames that speak of attempts.  KeyError, TypeError, ValueError or IndexError: the worker sent nonsense."""

    def __init__(self, ledger: Ledger, outbox: list[object], tell_output: bool) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._tell_output = tell_output
        self.slots = 1
        self.leaving = False
        """The agent was told to clean up: its post-command is to be expected."""

    def take(self, header: dict[str, Any], payload: bytes) -> Result | None:
        """One frame, of a kind that is passed over when unknown; returns the result of pre or post where it holds one."""
        handler = self._FRAMES.get(header["t"])
        result: Result | None = handler(self, header, payload) if handler else None
        return result

    def _started(self, header: dict[str, Any], payload: bytes) -> None:
        started = []
        for job, number, slot in header["jobs"]:
            if job == m.POST_JOB and self.leaving:
                self._ledger.add(Attempt(job, number), b"", "post")
            flight = self._ledger.start(job, number, self._slot(slot))
            if flight and job > 0:
                started.append((flight.attempt.job, flight.attempt.number, flight.slot))
        if started:
            self._outbox.append(m.Started(started))

    def _slot(self, slot: object) -> int:
        if not isinstance(slot, int) or not 0 <= slot <= self.slots:
            raise ValueError("no such slot")
        return slot

    def _out(self, header: dict[str, Any], payload: bytes) -> None:
        if header["stream"] not in (1, 2):
            raise ValueError("no such stream")
        flight = self._ledger.find((header["job"], header["attempt"]))
        if flight:
            self._take_output(flight.attempt, header["stream"], int(header["position"]), payload)

    def _take_output(self, attempt: Attempt, stream: int, position: int, data: bytes) -> None:
        flight = self._ledger.find(attempt)
        assert flight
        before = flight.received[stream - 1]
        place = self._ledger.output(flight, stream, position, data)
        if place and self._tell_output and attempt.job > 0:
            length = flight.received[stream - 1] - before
            self._outbox.append(m.Output(attempt.job, attempt.number, stream, before, place[0], place[1], length))

    def _ended(self, header: dict[str, Any], payload: bytes) -> Result | None:
        results, position, setup_result = [], 0, None
        started = []
        for row in header["jobs"]:
            slot = self._slot(row[2])
            inline = (int(row[13]), int(row[14]))
            flight = self._ledger.find((row[0], row[1]))
            if flight:
                if not flight.started and self._ledger.start(*flight.attempt, slot) and flight.attempt.job > 0:
                    started.append((*flight.attempt, slot))
                self._take_rest(flight.attempt, row, payload[position : position + sum(inline)])
            position += sum(inline)
            ended = self._ledger.end(row)
            if ended and ended[0].attempt.job > 0:
                results.append(ended[1])
            elif ended:
                setup_result = ended[1]
        if started:
            self._outbox.append(m.Started(started))
        if results:
            self._outbox.append(m.Ended(results))
        return setup_result

    def _take_rest(self, attempt: Attempt, row: list[Any], inline: bytes) -> None:
        """The end of an attempt's output, which came with its result; then all of it must be there."""
        totals = [int(row[8]), int(row[9])]
        out = inline[: int(row[13])]
        for stream, data in ((1, out), (2, inline[len(out) :])):
            if data:
                self._take_output(attempt, stream, totals[stream - 1] - len(data), data)
        flight = self._ledger.find(attempt)
        assert flight
        if flight.received != totals:
            raise ValueError(f"the output of job {attempt.job} is not whole")
        if flight.crc != [row[10], row[11]]:
            self._outbox.append(m.Note(f"the output of job {attempt.job} does not match its checksum", warning=True))

    def _returned(self, header: dict[str, Any], payload: bytes) -> None:
        self.give_back([Attempt(job, number) for job, number in header["jobs"]])

    def give_back(self, attempts: list[Attempt]) -> None:
        """These never will start here."""
        dropped = [attempt for attempt in self._ledger.drop(attempts) if attempt.job > 0]
        if dropped:
            self._outbox.append(m.Returned(dropped))

    def stuck(self, header: dict[str, Any]) -> None:
        """These cannot be killed."""
        lost = self._ledger.drop((job, number) for job, number in header["jobs"])
        self._outbox.append(m.Lost([attempt for attempt in lost if attempt.job > 0], "it could not be killed"))

    _FRAMES: ClassVar[dict[str, Callable[[Any, dict[str, Any], bytes], Any]]] = {
        "started": _started, "out": _out, "ended": _ended, "returned": _returned,
    }  # fmt: skip
