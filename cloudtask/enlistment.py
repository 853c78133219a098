"""Who works in a run: the workers that are listed now, and those of earlier runs that may still have something."""

from __future__ import annotations

from cloudtask.conductor import Conductor
from cloudtask.fleet import Fleet, Member
from cloudtask.model import Address
from cloudtask.plan import Plan
from cloudtask.session.state import SessionState, WorkerRecord


class Enlistment:
    """Brings them together, by address; the same host twice is two workers.  A harvest asks launched machines, and nobody else."""

    def __init__(self, plan: Plan, state: SessionState, fleet: Fleet, conductor: Conductor) -> None:
        self._plan = plan
        self._state = state
        self._fleet = fleet
        self._conductor = conductor
        known = {number: record for number, record in sorted(state.workers.items()) if record.ready or state.in_doubt.get(number)}
        if plan.kind == "harvest":
            known = {number: record for number, record in known.items() if record.instance}
        self._known = known
        self.answered = [number for number, record in known.items() if record.ready]
        """Workers of earlier runs that answered once."""
        self.next_number = state.highest_worker + 1

    def enlist(self) -> None:
        """Add them all to the fleet, and begin to use those that are to be used or asked."""
        self._fleet.split = self._plan.launch.split if self._plan.launch else len(self._plan.workers)
        self._fleet.remote_transport = self._plan.settings.transport
        left = dict(self._known)
        for index, address in enumerate((*self._plan.workers, *self._plan.spares)):
            number = next((n for n, record in left.items() if not record.instance and _same_host(record.address, address)), None)
            member = self._fresh(address) if number is None else Member(number, address, known=True)
            left.pop(member.number, None)
            self._fleet.add(member)
            if index < len(self._plan.workers) or member.known:
                self._conductor.begin(member)
        for number, record in left.items():
            self._conductor.begin(self._fleet.add(self._earlier(number, record)))

    def take_up(self, now: float) -> None:
        """What the journal says may be on a worker is taken to be there until the worker is asked."""
        machines = {each.worker for each in self._state.bookings.instances.values()}
        for number, doubtful in self._state.in_doubt.items():
            if doubtful and (self._plan.kind != "harvest" or number in self._known):
                self._conductor.adopt(number, list(doubtful.items()), now, destroyed=number in machines)

    def _fresh(self, address: Address) -> Member:
        number, self.next_number = self.next_number, self.next_number + 1
        return Member(number, address)

    def _earlier(self, number: int, record: WorkerRecord) -> Member:
        """A worker of an earlier run that is not listed now: asked for what it has, but for a machine of ours, which goes on serving."""
        used = record.instance and self._plan.launch and sum(not member.ask_only for member in self._fleet) < self._fleet.split
        return Member(number, record.address, ask_only=not used, known=record.ready, instance=record.instance)


def _same_host(known: Address, listed: Address) -> bool:
    return (known.host, known.port, known.user, known.local) == (listed.host, listed.port, listed.user, listed.local)
