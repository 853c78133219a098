"""Knocking at machines that run, until each one lets us in: its sshd is up, shows the host key that it must show, and takes our key.

Logins block, so each one is done in a thread, a few at a time.  What a machine that boots may answer, and for how long, is
`workers.contact.Boot`'s to say, as it is for workers of a run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cloudtask.errors import CloudtaskError
from cloudtask.model import Address
from cloudtask.workers.contact import Boot

AT_ONCE = 16

LogIn = Callable[[Address], Sequence[str]]
"""Logs in and out again; lines for the log on how contact was made.  Raises CloudtaskError, OSError."""


class Opened(NamedTuple):
    """A machine that let us in; ``failure`` is why one never will, empty for one that did."""

    id: str
    notes: Sequence[str] = ()
    failure: str = ""


@dataclass
class _Door:
    """A machine that is knocked at.  Times are of the monotonic clock."""

    address: Address
    boot: Boot
    next_try: float
    failures: int = 0
    trying: bool = False
    reason: str = ""


@dataclass
class Knocking:
    """All the doors.  ``wake`` wakes the loop that calls `step`, from any thread; ``boot_timeout`` is in seconds."""

    log_in: LogIn
    wake: Callable[[], None]
    boot_timeout: float
    _doors: dict[str, _Door] = field(default_factory=dict)
    _outcomes: queue.SimpleQueue[tuple[str, _Door, Sequence[str] | Exception]] = field(default_factory=queue.SimpleQueue)
    _under_way: int = 0

    def begin(self, id: str, address: Address, now: float) -> None:
        """One more machine, by its id."""
        self._doors[id] = _Door(address, Boot(self.boot_timeout), next_try=now)

    def forget(self, id: str) -> str:
        """It is there no more; the last reason why it did not let us in."""
        door = self._doors.pop(id, None)
        return door.reason if door else ""

    def step(self, now: float) -> list[Opened]:
        """Begin what is due; the machines that became certain since the last time."""
        found = []
        while not self._outcomes.empty():
            id, door, outcome = self._outcomes.get()
            self._under_way -= 1
            if self._doors.get(id) is door and (opened := self._judge(id, door, outcome, now)):
                del self._doors[id]
                found.append(opened)
        for id, door in self._doors.items():
            if self._under_way < AT_ONCE and not door.trying and now >= door.next_try:
                self._under_way += 1
                door.trying = True
                threading.Thread(target=self._try, args=(id, door), daemon=True).start()
        return found

    def due_at(self) -> float:
        """When `step` has something to begin (monotonic)."""
        return min((door.next_try for door in self._doors.values() if not door.trying), default=float("inf"))

    def _try(self, id: str, door: _Door) -> None:
        try:
            outcome: Sequence[str] | Exception = self.log_in(door.address)
        except (CloudtaskError, OSError) as error:
            outcome = error
        self._outcomes.put((id, door, outcome))
        self.wake()

    def _judge(self, id: str, door: _Door, outcome: Sequence[str] | Exception, now: float) -> Opened | None:
        if not isinstance(outcome, Exception):
            return Opened(id, outcome)
        door.trying = False
        door.failures += 1
        door.reason = str(outcome) or type(outcome).__name__
        pause = door.boot.pause(outcome, door.failures, now)
        door.next_try = now + (pause or 0.0)
        return Opened(id, failure=door.reason) if pause is None else None
