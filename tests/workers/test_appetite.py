"""How many jobs a supervisor asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudtask.model import Attempt
from cloudtask.workers.appetite import Appetite
from cloudtask.workers.ledger import Ledger
from cloudtask.workers.worker_log import WorkerLog
from tests.workers.test_ledger import row


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "workers").mkdir()
    return Ledger(WorkerLog(str(tmp_path), 1, "a"))


def end_short_jobs(ledger: Ledger) -> None:
    for job in range(100, 140):
        ledger.add(Attempt(job, 1), b"", "")
        ledger.start(job, 1, 1)
        ledger.end(row(job=job, seconds=0.01))


def test_slots_first_and_nothing_is_asked_for_twice(ledger: Ledger) -> None:
    appetite = Appetite(ledger, ahead=True)
    assert appetite.room(2, 0.0) == 2
    assert appetite.room(2, 0.0) == 0
    appetite.fed(2)
    ledger.add(Attempt(1, 1), b"", "")
    ledger.add(Attempt(2, 1), b"", "")
    assert appetite.room(2, 0.0) == 0


def test_short_jobs_are_asked_for_ahead_and_refilled_by_the_half(ledger: Ledger) -> None:
    end_short_jobs(ledger)
    appetite = Appetite(ledger, ahead=True)
    first = appetite.room(2, 0.0)
    assert 48 <= first <= 52
    appetite.fed(first)
    for job in range(1, first + 1):
        ledger.add(Attempt(job, 1), b"", "")
    ledger.drop((job, 1) for job in range(1, 11))
    assert appetite.room(2, 0.0) == 0
    ledger.drop((job, 1) for job in range(11, 31))
    assert appetite.room(2, 0.0) == 30


def test_a_long_way_wants_more_ahead(ledger: Ledger) -> None:
    end_short_jobs(ledger)
    assert Appetite(ledger, ahead=True).room(2, 1.0) > 350


def test_at_most_once_asks_for_its_slots_only(ledger: Ledger) -> None:
    end_short_jobs(ledger)
    assert Appetite(ledger, ahead=False).room(2, 1.0) == 2


def test_with_strikes_nothing_is_asked_for_ahead_while_jobs_fail(ledger: Ledger) -> None:
    end_short_jobs(ledger)
    appetite = Appetite(ledger, ahead=True, cautious=True)
    ledger.add(Attempt(1, 1), b"", "")
    ledger.start(1, 1, 1)
    failed = row(job=1, seconds=0.01)
    failed[4] = 1
    ledger.end(failed)
    assert appetite.room(2, 0.0) == 2
    end_short_jobs(ledger)
    assert appetite.room(2, 0.0) > 40
