"""How fast a journal is written and replayed, and how much memory the state takes: ``python -m tests.session.speed [JOBS]``.

Every job has the records of a real run (sent, started, ended, relayed), 50 jobs in each record.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from cloudtask.model import Attempt, Result, Span
from cloudtask.session import records
from cloudtask.session.replay import replay
from cloudtask.session.session import NewSession, Session
from cloudtask.states import Ending
from tests.session.samples import NOW, run, worker

BATCH = 50


class Speed(NamedTuple):
    """Seconds to write and to replay, bytes of journal for each job, and what replaying adds to a process's memory, in MB."""

    jobs: int
    written: float
    replayed: float
    bytes_each: float
    megabytes: float


def measure(jobs: int) -> Speed:
    """Write a session of that many jobs, and replay it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        with Session.create(folder, NewSession(jobs=[b"x"] * jobs)) as session:
            begin = time.perf_counter()
            session.append(run(), worker(1))
            for first in range(1, jobs + 1, BATCH):
                _batch(session, range(first, min(first + BATCH, jobs + 1)))
            session.sync()
            written = time.perf_counter() - begin
            size = os.path.getsize(session.paths.journal)
        command = [sys.executable, "-m", "tests.session.speed", session.paths.journal]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return Speed(jobs, written, float(said[0]), size / jobs, float(said[1]))


def _batch(session: Session, jobs: range) -> None:
    now = NOW + jobs.start / 1000
    ends = []
    for job in jobs:
        span = Span("workers/1.log", 200 * job, 120, 0)
        ends.append(records.End(Result(job, 1, Ending.EXIT, 0, now, 0.012, 0.003, 3456, 1, span=span)))
    session.append(records.sent(1, [Attempt(job, 1) for job in jobs], now))
    session.append(records.started(1, [(job, 1, 1) for job in jobs], now))
    session.append(records.ended(1, ends, now), records.relayed(jobs))


def _replay(path: str) -> None:
    before = _peak()
    begin = time.perf_counter()
    state = replay(path, strict=True)
    assert state.counts().ok == state.header.jobs and not any(state.in_doubt.values())
    print(time.perf_counter() - begin, _peak() - before)


def _peak() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    argument = sys.argv[1] if len(sys.argv) > 1 else "1000000"
    if argument.isdigit():
        print(measure(int(argument)))
    else:
        _replay(argument)
