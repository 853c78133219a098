"""The state of a session: what its journal says so far, as a fold over the records (`SessionState.apply`).

A million jobs take some 30 MB: one array for each fact.  ``apply`` is the only thing that changes a state, looks at nothing but the
state and the record, and raises KeyError, TypeError, ValueError, IndexError, OverflowError or AttributeError on a known event with
fields that `records` could not have written.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cloudtask.model import Address, Attempt, Identity
from cloudtask.session import bookings, ranges
from cloudtask.states import Ending, JobState

SUCCESS = "exit 0"
BURNING = frozenset({Ending.EXIT, Ending.SIGNAL, Ending.OOM, Ending.TIMEOUT, Ending.UNSTARTED})
"""Endings that burn a retry."""

_UID = re.compile(r"\d+-[0-9a-f]{12}", re.ASCII)
_MANY = 255


class Header(NamedTuple):
    """The journal's first line."""

    uid: str
    number: int
    jobs: int
    mode: str
    created: float
    version: str


class Counts(NamedTuple):
    """How a session's jobs stand, as in the last status line: ``errors`` are the failed ones that did not time out."""

    pending: int
    timeouts: int
    errors: int
    ok: int


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """What the journal knows of a worker that was contacted and is not cleaned up.  ``ready``: its agent answered once."""

    number: int
    address: Address
    transport: str = ""
    key: bool = False
    ready: bool = False
    identity: Identity | None = None
    home: str = ""
    slots: int = 0
    login: str = ""
    setup: bool = False
    retired: bool = False
    silent: bool = False
    instance: str | None = None


class SessionState:
    """Everything a resume or a viewer needs to know; arrays are indexed by job number, from 1.

    ``job_states`` (JobState), ``attempts`` (the highest number given out), ``failures`` (attempts that burned a retry) and
    ``losses`` (started attempts lost) since the job was last set back by a retry, up to 255; ``relayed`` (1: nothing of it is left
    to show); ``where`` (the journal's line that settled it, as its offset + 1; 0: none).  ``in_doubt[worker][attempt]`` are the
    attempts that may be on a worker, True for started ones.  ``workers`` are those not cleaned up; ``highest_worker`` counts all.
    ``epoch`` is the highest, ``runs`` the last run's number, ``began`` the first run's time (0: none yet), ``exit`` that of the last
    run that finished, ``finished`` True when no run began after that.  ``end`` is the length of the whole lines, in bytes.
    ``bookings`` are the machines that it launched.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        size = header.jobs + 1
        self.job_states = bytearray(size)
        self.attempts = array("I", bytes(4 * size))
        self.failures = bytearray(size)
        self.losses = bytearray(size)
        self.relayed = bytearray(size)
        self.where = array("Q", bytes(8 * size))
        self.in_doubt: dict[int, dict[Attempt, bool]] = {}
        self.workers: dict[int, WorkerRecord] = {}
        self.highest_worker = self.epoch = self.runs = self.end = 0
        self.began = 0.0
        self.exit: int | None = None
        self.finished = False
        self.bookings = bookings.Bookings()
        self._open = array("H", bytes(2 * size))
        self._outcomes = array("I", bytes(4 * size))
        self._words: list[str] = [""]
        self._codes: dict[str, int] = {"": 0}

    def state(self, job: int) -> JobState:
        """Where a job stands."""
        return JobState(self.job_states[job])

    def outcome(self, job: int) -> str:
        """How a settled job ended, as `model.Result.describe` says it; empty for one that is not settled."""
        return self._words[self._outcomes[job]]

    def jobs(self, *states: JobState) -> Iterator[int]:
        """The jobs that stand at one of ``states``, in order."""
        wanted = {int(state) for state in states}
        return (job for job in range(1, len(self.job_states)) if self.job_states[job] in wanted)

    def settled(self) -> Iterator[tuple[int, str]]:
        """(job, outcome) of the settled jobs, in order."""
        return ((job, self.outcome(job)) for job in self.jobs(JobState.SUCCEEDED, JobState.FAILED))

    def unrelayed(self) -> Iterator[int]:
        """The settled jobs whose output was not shown, in order; those that had none are not among them."""
        return (job for job in range(1, len(self.where)) if self.where[job] and not self.relayed[job])

    def counts(self) -> Counts:
        """How many jobs stand where."""
        ended = Counter(self._outcomes)
        ok = self.job_states.count(JobState.SUCCEEDED)
        failed = self.job_states.count(JobState.FAILED)
        timeouts = ended[self._codes[Ending.TIMEOUT]] if Ending.TIMEOUT in self._codes else 0
        return Counts(pending=self.header.jobs - ok - failed, timeouts=timeouts, errors=failed - timeouts, ok=ok)

    def apply(self, event: str, fields: Mapping[str, Any], offset: int) -> bool:
        """Take in the record that stands at ``offset`` in the journal; False when its event is unknown, and nothing changed."""
        rule = _RULES.get(event)
        if rule is None:
            return self._book(event, fields)
        rule(self, fields, offset)
        return True

    def _book(self, event: str, fields: Mapping[str, Any]) -> bool:
        rule = bookings.RULES.get(event)
        if rule is None:
            return False
        for worker in rule(self.bookings, fields) or ():
            self.workers.pop(worker, None)
        return True

    def _take(self, held: dict[Attempt, bool], job: int, number: int, started: bool) -> None:
        """An attempt is on a worker, or may be."""
        self._check(job, number)
        attempt = Attempt(job, number)
        if attempt not in held:
            self._open[job] += 1
            if self.job_states[job] == JobState.PENDING:
                self.job_states[job] = JobState.ACTIVE
        held[attempt] = started or held.get(attempt, False)
        self.attempts[job] = max(self.attempts[job], number)

    def _check(self, job: int, number: int) -> None:
        """``number`` 0 is for a job settled without an attempt."""
        if not 0 < job < len(self.job_states) or number < 0:
            raise ValueError(f"no job {job}, attempt {number}")

    def _drop(self, held: dict[Attempt, bool], job: int, number: int) -> bool:
        """An attempt is no longer there; True when it had started."""
        self._check(job, number)
        self.attempts[job] = max(self.attempts[job], number)
        started = held.pop(Attempt(job, number), None)
        if started is None:
            return False
        self._open[job] -= 1
        if not self._open[job] and self.job_states[job] == JobState.ACTIVE:
            self.job_states[job] = JobState.PENDING
        return started

    def _settle(self, job: int, outcome: str, offset: int, *, output: bool) -> None:
        """What was settled first stays."""
        if self.job_states[job] >= JobState.SUCCEEDED:
            return
        self.job_states[job] = JobState.SUCCEEDED if outcome == SUCCESS else JobState.FAILED
        self._outcomes[job] = self._code(outcome)
        self.where[job] = offset + 1
        self.relayed[job] = not output

    def _code(self, outcome: str) -> int:
        code = self._codes.setdefault(outcome, len(self._words))
        if code == len(self._words):
            self._words.append(outcome)
        return code

    def _set_back(self, job: int) -> None:
        """A retry: a failed job is as if it had never run, but for its attempts' numbers."""
        if self.job_states[job] != JobState.FAILED:
            return
        self.job_states[job] = JobState.ACTIVE if self._open[job] else JobState.PENDING
        self.where[job] = self.relayed[job] = self._outcomes[job] = self.failures[job] = self.losses[job] = 0

    def _end(self, items: list[dict[str, Any]], worker: int, offset: int) -> None:
        held = self.in_doubt.setdefault(worker, {})
        for item in items:
            job, outcome = item["job"], item["outcome"]
            word = outcome.partition(" ")[0]
            self._drop(held, job, item.get("attempt", 1))
            if word in BURNING and outcome != SUCCESS:
                self.failures[job] = min(self.failures[job] + 1, _MANY)
            elif word == Ending.LOST:
                self.losses[job] = min(self.losses[job] + 1, _MANY)
            if not item.get("again") and word != Ending.SUPERSEDED:
                self._settle(job, outcome, offset, output=bool(item.get("out") or item.get("err")))

    def _change(self, number: int, **changes: Any) -> None:
        """A worker that was released, and says something again, stays released."""
        if number in self.workers:
            self.workers[number] = replace(self.workers[number], **changes)

    def _on_run(self, record: Mapping[str, Any], _offset: int) -> None:
        self.runs = max(self.runs, record["run"])
        self.epoch = max(self.epoch, record["epoch"])
        self.began = self.began or record["time"]
        self.finished = False
        for first, last in ranges.decode(record.get("retry", [])):
            self._check(first, 0)
            self._check(last, 0)
            for job in range(first, last + 1):
                self._set_back(job)

    def _on_epoch(self, record: Mapping[str, Any], _offset: int) -> None:
        self.epoch = max(self.epoch, record["epoch"])

    def _on_worker(self, record: Mapping[str, Any], _offset: int) -> None:
        number = record["worker"]
        asked = {"user": record.get("user"), "port": record.get("port"), "slots": record.get("asked")}
        own = {"transport": record.get("own_transport"), "alias": record.get("alias"), "host_key": record.get("host_key")}
        address = Address(host=record["host"], local=bool(record.get("local")), **asked, **own)
        self.highest_worker = max(self.highest_worker, number)
        known = {"transport": record["transport"], "key": bool(record.get("key")), "instance": record.get("instance")}
        self.workers[number] = WorkerRecord(number=number, address=address, **known)
        self.bookings.became(record.get("instance", ""), number)

    def _on_ready(self, record: Mapping[str, Any], _offset: int) -> None:
        facts = {name: record[name] for name in ("home", "slots", "login")}
        self._change(record["ready"], ready=True, identity=Identity(*record["identity"]), **facts)

    def _on_setup(self, record: Mapping[str, Any], _offset: int) -> None:
        self._change(record["setup"], setup=True)

    def _on_sent(self, record: Mapping[str, Any], _offset: int) -> None:
        held = self.in_doubt.setdefault(record["worker"], {})
        for job, number in record["sent"]:
            self._take(held, job, number, False)

    def _on_started(self, record: Mapping[str, Any], _offset: int) -> None:
        held = self.in_doubt.setdefault(record["worker"], {})
        for job, number, _slot in record["started"]:
            self._take(held, job, number, True)

    def _on_returned(self, record: Mapping[str, Any], _offset: int) -> None:
        held = self.in_doubt.setdefault(record["worker"], {})
        for job, number in record["returned"]:
            self._drop(held, job, number)

    def _on_ended(self, record: Mapping[str, Any], offset: int) -> None:
        self._end(record["ended"], record["worker"], offset)

    def _on_adopted(self, record: Mapping[str, Any], offset: int) -> None:
        held = self.in_doubt.setdefault(record["adopted"], {})
        for name in ("running", "held", "queued"):
            for job, number in record.get(name, ()):
                self._take(held, job, number, name != "queued")
        self._end(record.get("ended", []), record["adopted"], offset)

    def _on_lost(self, record: Mapping[str, Any], _offset: int) -> None:
        held = self.in_doubt.setdefault(record["worker"], {})
        for job, number in record["lost"]:
            if self._drop(held, job, number) and not record.get("uncounted"):
                self.losses[job] = min(self.losses[job] + 1, _MANY)

    def _on_contact(self, record: Mapping[str, Any], _offset: int) -> None:
        self._change(record["worker"], silent=record["contact"] == "lost")

    def _on_settled(self, record: Mapping[str, Any], offset: int) -> None:
        job = record["settled"]
        self._check(job, record["attempt"])
        for held in self.in_doubt.values():
            self._drop(held, job, record["attempt"])
        if self.job_states[job] == JobState.FAILED:
            self._outcomes[job] = self._code(record["outcome"])
        self._settle(job, record["outcome"], offset, output=False)

    def _on_relayed(self, record: Mapping[str, Any], _offset: int) -> None:
        for first, last in ranges.decode(record["relayed"]):
            self._check(first, 0)
            self._check(last, 0)
            self.relayed[first : last + 1] = b"\1" * (last + 1 - first)

    def _on_retired(self, record: Mapping[str, Any], _offset: int) -> None:
        self._change(record["retired"], retired=True)

    def _on_released(self, record: Mapping[str, Any], _offset: int) -> None:
        self.workers.pop(record["released"], None)

    def _on_finished(self, record: Mapping[str, Any], _offset: int) -> None:
        self.exit = record["exit"]
        self.finished = True


_RULES: dict[str, Callable[[SessionState, Mapping[str, Any], int], None]] = {
    name.removeprefix("_on_"): rule for name, rule in vars(SessionState).items() if name.startswith("_on_")
}


def parse_header(fields: Mapping[str, Any]) -> Header:
    """The header in the journal's first record.  Raises KeyError, TypeError or ValueError where it is none."""
    header = Header(fields["session"], fields["number"], fields["jobs"], fields["input"], fields["created"], fields["cloudtask"])
    if not _UID.fullmatch(header.uid) or not isinstance(header.number, int) or not 0 <= header.jobs < 1 << 32:
        raise ValueError("not the header of a session")
    return header
