"""Journals for the tests of this folder: a small one to read, and hypothesis strategies for valid ones of every shape."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cloudtask.model import Address, Attempt, Identity, Result, Span
from cloudtask.session import records
from cloudtask.session.state import Header, SessionState, parse_header
from cloudtask.states import Ending, JobState

UID = "1-0123456789ab"
NOW = 1764000000.0
IDENTITY = Identity("machine", "boot", "start")


def header(jobs: int) -> bytes:
    """A journal's first line."""
    return records.header(UID, number=1, jobs=jobs, mode="words", created=NOW, version="2.0")


def run(number: int = 1, **more: Any) -> bytes:
    """A run record with the given fields changed."""
    return records.run(number, **{"epoch": number, "pid": 7, "host": "here", "time": NOW + number, "kind": "new", **more})


def worker(number: int) -> bytes:
    """A worker that was contacted and answered."""
    contacted = records.worker(number, Address(host=f"host{number}", user="root", port=22, slots=4), transport="ssh", key=True)
    return contacted + records.ready(number, identity=IDENTITY, home="/root/.cloudtask", slots=4, login="root@h:22", time=NOW)


def good(job: int, attempt: int = 1, *, out: int = 5, worker: int = 1) -> Result:
    """A success with some output."""
    return Result(job, attempt, Ending.EXIT, 0, NOW, 1.5, 0.25, 2048, 1, span=Span(f"workers/{worker}.log", 100 * job, out, 0))


def bad(job: int, attempt: int = 1, ending: Ending = Ending.EXIT, value: int = 3) -> Result:
    """A failure without output."""
    return Result(job, attempt, ending, value, NOW, 1.5)


def end(*results: Result, again: bool = False, worker: int = 1) -> bytes:
    """An ended record in which every result means the same for its job."""
    return records.ended(worker, [records.End(result, again) for result in results], NOW + 2)


def write(path: Path, *lines: bytes) -> str:
    """A journal file of these lines."""
    path.write_bytes(b"".join(lines))
    return str(path)


def fold(lines: list[bytes]) -> SessionState:
    """The state that whole lines tell of, by `SessionState.apply` alone."""
    state = SessionState(parse_header(json.loads(lines[0])))
    offset = len(lines[0])
    for line in lines[1:]:
        fields = json.loads(line)
        state.apply(next(iter(fields)), fields, offset)
        offset += len(line)
    state.end = offset
    return state


def snapshot(state: SessionState) -> dict[str, Any]:
    """Everything public that a state says, to compare two."""
    facts: dict[str, Any] = dict(vars(state))
    facts["outcomes"] = list(state.settled())
    facts["counts"] = state.counts()
    return {name: value for name, value in facts.items() if name not in ("_words", "_codes", "_outcomes")}


def sample_header(jobs: int) -> Header:
    """The header of a state made by hand."""
    return parse_header(json.loads(header(jobs)))


@dataclass
class Pretender:
    """A tiny engine that journals what the real one might: legal moves only, chosen by hypothesis."""

    jobs: int
    lines: list[bytes] = field(default_factory=list)
    runs: int = 1
    workers: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    held: dict[Attempt, tuple[int, bool]] = field(default_factory=dict)
    settled: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lines = [header(self.jobs), run()]

    def act(self, draw: st.DrawFn) -> None:
        """One more record."""
        acts = [self.enlist, self.relay, self.rerun]
        if self.workers:
            acts += [self.send] * 4
        if self.held:
            acts += [self.start] * 2 + [self.end] * 6 + [self.give_back, self.lose, self.adopt, self.give_up]
        self.lines.append(draw(st.sampled_from(acts))(draw))

    def enlist(self, draw: st.DrawFn) -> bytes:
        """Another worker answers."""
        self.workers += 1
        return worker(self.workers)

    def send(self, draw: st.DrawFn) -> bytes:
        """A new attempt of any job that is not settled."""
        open_jobs = [job for job in range(1, self.jobs + 1) if job not in self.settled]
        number = draw(st.integers(1, self.workers))
        chosen = draw(st.lists(st.sampled_from(open_jobs), unique=True, max_size=3)) if open_jobs else []
        attempts = [Attempt(job, self.attempts.get(job, 0) + 1) for job in chosen]
        self.attempts.update(attempts)
        self.held.update(dict.fromkeys(attempts, (number, False)))
        return records.sent(number, attempts, NOW)

    def pick(self, draw: st.DrawFn) -> tuple[int, Attempt]:
        """Any attempt under way, and its worker."""
        attempt = draw(st.sampled_from(sorted(self.held)))
        return self.held[attempt][0], attempt

    def start(self, draw: st.DrawFn) -> bytes:
        """An attempt starts (again, where a reconnected agent says it twice)."""
        number, attempt = self.pick(draw)
        self.held[attempt] = (number, True)
        return records.started(number, [(*attempt, 1)], NOW)

    def end(self, draw: st.DrawFn) -> bytes:
        """An attempt ends, in any way, and settles its job or not."""
        number, attempt = self.pick(draw)
        del self.held[attempt]
        ending = draw(st.sampled_from([Ending.EXIT, Ending.SIGNAL, Ending.TIMEOUT, Ending.LOST, Ending.ABORTED, Ending.SUPERSEDED]))
        value = draw(st.integers(0, 2)) if ending is Ending.EXIT else 0
        result = Result(*attempt, ending, value, span=Span(f"workers/{number}.log", 0, draw(st.integers(0, 1)), 0))
        again = not result.succeeded and draw(st.booleans())
        if not again and ending is not Ending.SUPERSEDED:
            self.settled.setdefault(attempt.job, result.describe())
        return end(result, again=again, worker=number)

    def give_back(self, draw: st.DrawFn) -> bytes:
        """An attempt is returned unstarted."""
        number, attempt = self.pick(draw)
        del self.held[attempt]
        return records.returned(number, [attempt])

    def lose(self, draw: st.DrawFn) -> bytes:
        """An attempt is lost with its worker."""
        number, attempt = self.pick(draw)
        del self.held[attempt]
        return records.lost(number, [attempt], "gone", NOW)

    def give_up(self, draw: st.DrawFn) -> bytes:
        """A job is settled without an end."""
        _, attempt = self.pick(draw)
        del self.held[attempt]
        if self.settled.get(attempt.job) != "exit 0":
            self.settled[attempt.job] = "unknown"
        return records.settled(*attempt, Ending.UNKNOWN, NOW)

    def adopt(self, draw: st.DrawFn) -> bytes:
        """A resume finds what the journal knew, and an attempt that it had lost."""
        number, attempt = self.pick(draw)
        unknown = Attempt(draw(st.integers(1, self.jobs)), max(self.attempts.values()) + 1)
        self.attempts[unknown.job] = unknown.number
        self.held.update({attempt: (number, True), unknown: (number, False)})
        return records.adopted(number, NOW, running=[attempt], queued=[unknown])

    def relay(self, draw: st.DrawFn) -> bytes:
        """Some settled jobs' output was shown."""
        return records.relayed(draw(st.sets(st.sampled_from(sorted(self.settled))))) if self.settled else records.relayed([])

    def rerun(self, draw: st.DrawFn) -> bytes:
        """Another process takes a turn, with or without a retry of the failed jobs."""
        self.runs += 1
        failed = [job for job, outcome in self.settled.items() if outcome != "exit 0"] if draw(st.booleans()) else []
        for job in failed:
            del self.settled[job]
        return run(self.runs, kind="retry" if failed else "resume", retry=failed)

    def expected(self, job: int) -> JobState:
        """Where the job must stand now."""
        if job in self.settled:
            return JobState.SUCCEEDED if self.settled[job] == "exit 0" else JobState.FAILED
        return JobState.ACTIVE if any(attempt.job == job for attempt in self.held) else JobState.PENDING


@st.composite
def pretenders(draw: st.DrawFn) -> Pretender:
    """A valid journal, with what it must amount to."""
    pretender = Pretender(draw(st.integers(1, 5)))
    for _ in range(draw(st.integers(0, 25))):
        pretender.act(draw)
    return pretender
