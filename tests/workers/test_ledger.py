"""What a supervisor believes of its worker, and what not."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest

from cloudtask.model import Attempt
from cloudtask.states import Ending
from cloudtask.workers import messages as m
from cloudtask.workers.intake import Intake
from cloudtask.workers.ledger import Ledger
from cloudtask.workers.worker_log import WorkerLog

JOB = Attempt(1, 1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "workers").mkdir()
    ledger = Ledger(WorkerLog(str(tmp_path), 1, "a"))
    ledger.add(JOB, b"true", "true")
    return ledger


def row(out: bytes = b"", err: bytes = b"", ending: str = "exit", seconds: float = 0.5, job: int = 1) -> list[Any]:
    """A result as an agent sends it, all of its output in the same frame."""
    return [job, 1, 1, ending, 0, seconds, 0.1, 900, len(out), len(err), zlib.crc32(out), zlib.crc32(err), False, len(out), len(err)]


def take(ledger: Ledger, header: dict[str, Any], payload: bytes = b"") -> list[object]:
    outbox: list[object] = []
    Intake(ledger, outbox, tell_output=False).take(header, payload)
    return outbox


def test_a_result_with_its_output(ledger: Ledger) -> None:
    started, ended = take(ledger, {"t": "ended", "jobs": [row(b"out", b"err")]}, b"outerr")
    assert started == m.Started([(1, 1, 1)])
    assert isinstance(ended, m.Ended)
    (result,) = ended.results
    assert result.ending is Ending.EXIT and result.succeeded and result.span
    assert (result.span.out, result.span.err) == (3, 3)
    assert len(ledger) == 0


def test_an_attempt_that_was_never_sent_is_not_believed(ledger: Ledger) -> None:
    assert take(ledger, {"t": "ended", "jobs": [row(job=2)]}) == []
    assert take(ledger, {"t": "started", "jobs": [[2, 1, 1]]}) == []
    assert take(ledger, {"t": "returned", "jobs": [[2, 1]]}) == []
    assert take(ledger, {"t": "out", "job": 2, "attempt": 1, "stream": 1, "position": 0}, b"x") == []
    assert ledger.attempts() == [JOB]


def test_an_end_counts_once(ledger: Ledger) -> None:
    take(ledger, {"t": "ended", "jobs": [row()]})
    assert take(ledger, {"t": "ended", "jobs": [row()]}) == []


@pytest.mark.parametrize("ending", ["unknown", "poison", "lost", "nonsense"])
def test_conclusions_are_not_a_workers_to_draw(ledger: Ledger, ending: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        take(ledger, {"t": "ended", "jobs": [row(ending=ending)]})
    assert ledger.attempts() == [JOB]


def test_missing_output_is_not_passed_over(ledger: Ledger) -> None:
    incomplete = row(b"out")
    incomplete[8] = 10
    with pytest.raises(ValueError, match=r"gap|whole"):
        take(ledger, {"t": "ended", "jobs": [incomplete]}, b"out")


def test_output_that_comes_twice_is_taken_once(ledger: Ledger) -> None:
    for position, data in ((0, b"hello "), (0, b"hello wor"), (9, b"ld")):
        take(ledger, {"t": "out", "job": 1, "attempt": 1, "stream": 1, "position": position}, data)
    flight = ledger.find(JOB)
    assert flight and flight.received == [11, 0] and flight.crc[0] == zlib.crc32(b"hello world")


@pytest.mark.parametrize("seconds", [-1.0, "1", None, float("inf"), True])
def test_figures_must_be_figures(ledger: Ledger, seconds: object) -> None:
    wrong = row()
    wrong[5] = seconds
    with pytest.raises(ValueError, match="number"):
        take(ledger, {"t": "ended", "jobs": [wrong]})


def test_short_jobs_are_held_ahead_and_long_ones_are_not(ledger: Ledger) -> None:
    assert ledger.appetite(2, 0.25) == 0
    for job in range(10, 60):
        ledger.add(Attempt(job, 1), b"", "")
        take(ledger, {"t": "ended", "jobs": [row(job=job, seconds=0.005)]})
    assert 98 <= ledger.appetite(2, 0.25) <= 100
    ledger.add(Attempt(99, 1), b"", "")
    take(ledger, {"t": "ended", "jobs": [row(job=99, seconds=30)]})
    assert ledger.appetite(2, 0.25) == 0


def test_output_that_comes_before_its_slot_is_told_stays_in_one_file(ledger: Ledger, tmp_path: Path) -> None:
    """A result that an earlier supervisor did not fetch: its output comes in pieces, and its slot with the end."""
    log = ledger._log
    log.slots = 3
    take(ledger, {"t": "out", "job": 1, "attempt": 1, "stream": 1, "position": 0}, b"first ")
    whole = b"first second"
    later = row(whole)
    later[2], later[13] = 3, len(b"second")
    outbox: list[object] = []
    intake = Intake(ledger, outbox, tell_output=False)
    intake.slots = 3
    intake.take({"t": "ended", "jobs": [later]}, b"second")
    log.flush()
    (ended,) = (message for message in outbox if isinstance(message, m.Ended))
    span = ended.results[0].span
    assert span and (tmp_path / span.file).read_bytes().count(whole) == 1
