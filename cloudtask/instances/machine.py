"""One machine of a session, and the register of all of them: what the journal knows, and how each one stands in this run."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass

from cloudtask.providers import Instance
from cloudtask.session import records
from cloudtask.session.bookings import RULES, Bookings, OrderRecord
from cloudtask.turn import Turn

_LONG = 64


class Phase(enum.Enum):
    """Where a machine stands for this run."""

    BOOTING = "booting"
    """Launched; it has no worker yet."""
    SERVING = "serving"
    """It is a worker."""
    DOOMED = "doomed"
    """Its end is settled; the provider is to be asked."""
    LEAVING = "leaving"
    """The provider was asked to destroy it."""
    GONE = "gone"
    """The provider says that it is gone."""
    KEPT = "kept"
    """It stays when the session ends."""


@dataclass
class Machine:
    """A machine that was launched.  Times are of the monotonic clock, 0 for never, but ``launched``: seconds since 1970."""

    id: str
    order: OrderRecord
    launched: float
    since: float
    phase: Phase = Phase.BOOTING
    replacement: bool = False
    worker: int = 0
    answered: bool = False
    instance: Instance | None = None
    absences: int = 0
    """Answers in a row that did not know it."""
    why: str = ""
    asked_at: float = 0.0
    looked_at: float = 0.0
    ask_after: float = 0.0
    refusals: int = 0
    reclaim_told: bool = False
    console_since: float = 0.0
    console_key: str = ""
    """The host key that its console shows."""

    @property
    def name(self) -> str:
        """Its id as status lines have it."""
        return short_id(self.id)

    @property
    def over(self) -> bool:
        """Nothing more is to be done about it."""
        return self.phase in (Phase.GONE, Phase.KEPT)


class Register:
    """All machines of a session by id, with the journal's knowledge of them (``bookings``) kept up to date."""

    def __init__(self, session: str, bookings: Bookings, turn: Turn) -> None:
        self.session = session
        self.bookings = bookings
        self.machines: dict[str, Machine] = {}
        self._turn = turn

    def __iter__(self) -> Iterator[Machine]:
        return iter(list(self.machines.values()))

    def write(self, record: bytes, *, sync: bool = False) -> None:
        """A record on orders or machines: for the journal, and taken in here."""
        self._turn.record(record, sync=sync)
        fields = json.loads(record)
        RULES[next(iter(fields))](self.bookings, fields)

    def say(self, text: str, important: bool = False) -> None:
        """A status line."""
        self._turn.say(text, important)

    def take_in(self, ids: list[str], order: OrderRecord, wall: float, now: float) -> list[Machine]:
        """Machines that came of an order: journalled, on disk before anything is done with them.  Those that are known stay as they are."""
        fresh = [id for id in ids if id not in self.machines]
        if not fresh:
            return []
        self.write(records.launched(order.token, fresh, wall), sync=True)
        return [self.add(id, order, wall, now) for id in fresh]

    def add(self, id: str, order: OrderRecord, launched: float, now: float) -> Machine:
        """One more machine, booting."""
        machine = self.machines[id] = Machine(id=id, order=order, launched=launched, since=now)
        return machine

    def phased(self, *phases: Phase) -> list[Machine]:
        """The machines that stand at one of ``phases``."""
        return [machine for machine in self if machine.phase in phases]

    def gone(self, machine: Machine, wall: float) -> None:
        """The provider says that it is gone."""
        machine.phase = Phase.GONE
        self.write(records.destroyed([machine.id], wall))
        self.say(f"destroyed worker {machine.name}")

    def doom(self, machine: Machine, why: str) -> None:
        """It is to be destroyed."""
        if machine.phase in (Phase.BOOTING, Phase.SERVING):
            machine.phase = Phase.DOOMED
            machine.why = machine.why or why


def short_id(id: str) -> str:
    """An id for people: without what stands behind a dot (a region, an engine), and of a container's the first twelve characters."""
    name = id.partition(".")[0] or id
    return name if len(name) < _LONG else name[:12]
