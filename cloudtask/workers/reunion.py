"""Contact again: what the agent has, held against what it was given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cloudtask.model import Attempt
from cloudtask.workers import messages as m
from cloudtask.workers.ledger import Flight, Ledger

_THERE = ("queued", "running", "ended")


class Reunion(NamedTuple):
    """Attempts that the agent has, those that it lost, and those that never reached it."""

    wanted: list[Flight]
    lost: list[Attempt]
    absent: list[Flight]


def compare(ledger: Ledger, inventory: Iterable[m.Row], *, forgetful: bool) -> Reunion:
    """``forgetful``: this is not the agent that was given them, or not the machine: what it does not know may have begun."""
    rows = {row.attempt: row for row in inventory}
    found = Reunion([], [], [])
    for attempt in ledger.attempts():
        flight = ledger.find(attempt)
        assert flight
        row = rows.get(attempt)
        if row and row.state in _THERE:
            flight.known = True
            found.wanted.append(flight)
        elif row or flight.started or forgetful:
            found.lost.append(attempt)
        else:
            found.absent.append(flight)
    return found
