"""A session's machines, as the loop that runs it sees them: ordered, booting, serving as workers, being destroyed, gone.

The order of writing is what keeps machines from getting lost: an order is in the journal, on disk, before the provider hears of it; ids
are before anything is done with them; ``destroying`` is before the provider is asked; ``destroyed`` only when the provider says so.
Everything that blocks is done in `calls`; how many machines to have is decided in `demand`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Literal

from cloudtask.errors import CloudtaskError
from cloudtask.instances import costs
from cloudtask.instances.calls import Lane
from cloudtask.instances.demand import Demand, Have, Limits, Need
from cloudtask.instances.ending import Ending
from cloudtask.instances.looking import Looking
from cloudtask.instances.machine import Machine, Phase, Register
from cloudtask.instances.ordering import Ordering
from cloudtask.instances.orders import EXPIRY, Customer, controller_id
from cloudtask.model import Address
from cloudtask.providers import Instance, Provider, Tags
from cloudtask.session import records
from cloudtask.session.bookings import Bookings
from cloudtask.turn import Turn
from cloudtask.units import format_elapsed
from cloudtask.worker_file import instance_alias

Standing = Callable[[int], Literal["serving", "coming", "none"]]
"""Of a worker's number: whether it takes jobs, will take them, or does neither."""


CONSOLE_SECONDS = 150.0
"""How long a machine's console is asked for its host key."""

_REFUSALS = 3
"""Times that a provider may refuse to destroy a machine until nobody counts on its being gone."""

KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
"""Types of host keys, best first."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a pool is to do.  ``keep_for`` is set where machines stay at the end, for so many seconds."""

    customer: Customer
    limits: Limits
    boot_timeout: float
    keep_for: float | None = None


class Pool:
    """See the module.  ``make`` makes a provider; ``wake`` wakes the loop, from any thread.

    ``on_ready(machine, address)`` hands over a machine that runs and has an address; ``on_gone(machine, why, reclaimed)`` says that a
    machine which was handed over is there no more, or never was ready; ``on_reclaim(machine, why)`` that it is about to go;
    ``on_destroyed(machine)`` that one which was handed over, and was to be destroyed, is gone.
    ``on_kept(machine)`` tells of one that stays; the journal knows of it once the turn is committed.
    """

    def __init__(self, terms: Terms, make: Callable[[], Provider], bookings: Bookings, turn: Turn, wake: Callable[[], None]) -> None:
        self._terms = terms
        abilities = terms.customer.abilities
        self._abilities = abilities
        self.register = Register(terms.customer.session, bookings, turn)
        self.demand = Demand(terms.limits)
        self._lanes = {name: Lane(make, wake) for name in ("launch", "look", "destroy", "renew", "console")}
        self._ordering = Ordering(self.register, self.demand, self._lanes["launch"], terms.customer, turn)
        self._looking = Looking(self.register, self._lanes["look"], abilities.settles)
        self._ending = Ending(self.register, self._lanes["destroy"], turn)
        self._ordering.on_launched = self._launched
        self._looking.on_running = self._running
        self._looking.on_gone = self._gone
        self._looking.on_destroyed = lambda machine: self.on_destroyed(machine)
        self._looking.on_reclaim = lambda machine, why: self.on_reclaim(machine, why)
        self._looking.on_found = self._found
        self._renew_at = time.monotonic() + EXPIRY / 2
        self._closing = ""
        self._ordered = self._arrived = 0
        self._expiring: list[Machine] = []
        self.on_ready: Callable[[Machine, Address], None] = lambda machine, address: None
        self.on_gone: Callable[[Machine, str, bool], None] = lambda machine, why, reclaimed: None
        self.on_destroyed: Callable[[Machine], None] = lambda machine: None
        self.on_reclaim: Callable[[Machine, str], None] = lambda machine, why: None
        self.on_kept: Callable[[Machine], None] = lambda machine: None

    # --- taking up what earlier runs left ----------------------------------------------------------------------------

    def take_up(self, ready: Container[int], now: float, *, needed: bool) -> None:
        """Machines and open orders of earlier runs: serving where they have a worker, else booting; those being destroyed go on going.

        ``ready`` are the workers that answered once; ``needed`` says that open orders may be given again.
        """
        bookings = self.register.bookings
        for record in bookings.instances.values():
            order = bookings.orders.get(record.token)
            if order is None or not record.ours:
                continue
            machine = self.register.add(record.id, order, record.launched, now)
            if record.worker in ready:
                machine.worker, machine.answered, machine.phase = record.worker, True, Phase.SERVING
            if record.destroying:
                self.register.doom(machine, "an earlier run was done with it")
        for order in bookings.open_orders():
            self._ordering.take_up(order, again=needed)

    # --- one turn ----------------------------------------------------------------------------------------------------

    def step(self, need: Need, standing: Standing, now: float) -> None:
        """Go on with everything."""
        for lane in self._lanes.values():
            lane.collect(now)
        self._overdue(now)
        self._ordering.step(now)
        if not self._closing and (count := self.demand.order(need, self.have(standing), now)):
            self._ordered += count
            self._ordering.give(count)
        self._ending.step(now)
        if self._closing and self._must_list:
            self._looking.list_soon()
        self._looking.step(now, bool(self._ordering.in_doubt))
        self._renew(now)

    def have(self, standing: Standing) -> Have:
        """How things stand, for `demand` and for whoever shows it."""
        workers = [standing(machine.worker) for machine in self.register.phased(Phase.SERVING)]
        return Have(
            serving=workers.count("serving"),
            coming=workers.count("coming") + self.coming,
            # A worker that drains, or that nobody can reach, takes no jobs; its machine is there and costs.
            leaving=len(self.register.phased(Phase.DOOMED, Phase.LEAVING)) + workers.count("none"),
            ordered=self._ordered,
            dollars=self.bill().dollars,
        )

    def look(self) -> None:
        """Ask the provider how machines stand, now."""
        self._looking.soon()

    def due_at(self) -> float:
        """When `step` has something to do, if nothing else happens (monotonic)."""
        return self._looking.due_at()

    @property
    def coming(self) -> int:
        """Machines that boot, or are ordered."""
        return len(self.register.phased(Phase.BOOTING)) + self._ordering.coming

    def may_order(self, standing: Standing) -> bool:
        """Whether more could be launched if they were needed, now or once those are gone that are being destroyed."""
        if self._closing or self.demand.stopped:
            return False
        have = self.have(standing)
        going = sum(machine.refusals <= _REFUSALS for machine in self.register.phased(Phase.DOOMED, Phase.LEAVING))
        return self.demand.room(replace(have, leaving=have.leaving - going)) > 0

    def bill(self) -> costs.Bill:
        """What was launched and what it costs, until now."""
        return costs.bill(self.register.bookings, time.time())

    # --- what the run says of its workers ----------------------------------------------------------------------------

    def answered(self, machine: Machine) -> None:
        """Its agent answered: it is ready."""
        if not machine.answered:
            machine.answered = True
            self.demand.answered()

    def let_go(self, machine: Machine, failure: str) -> None:
        """Its worker is gone for this run; ``failure`` says why where it was not simply done with."""
        if failure and machine.phase is Phase.SERVING and not self._closing:
            self._count(machine, failure)
        if self._terms.keep_for is not None and not failure and machine.answered and machine.phase is Phase.SERVING:
            self._keep(machine, time.time() + self._terms.keep_for)
            return
        self.register.doom(machine, failure or "nothing more to do")
        self._looking.soon()

    def close(self, why: str) -> None:
        """No more machines: those that still boot are destroyed, those that serve when they are let go."""
        if self._closing:
            return
        self._closing = why
        self.demand.stop(why)
        self._ordering.give_no_more()
        for machine in self.register.phased(Phase.BOOTING):
            self.register.doom(machine, why)
        self._looking.soon()

    def give_up(self) -> None:
        """Leave everything to the watchdog: the journal says that all machines are to be destroyed."""
        left = [machine for machine in self.register if not machine.over and not machine.asked_at]
        if left:
            self.register.write(records.destroying([machine.id for machine in left], "the run was left", time.time()), sync=True)

    @property
    def _must_list(self) -> bool:
        """Some order is in doubt, and the provider was not asked since what it has."""
        return bool(self._ordering.in_doubt) and self._looking.listed_at <= self._ordering.doubted_at

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Nothing is left to wait for: every machine is gone or kept, and every order answered or given up."""
        if self._ordering.under_way or self._lanes["destroy"].busy or self._lanes["renew"].busy or self._expiring:
            return False
        if self._must_list:
            return False
        return all(machine.over or self._ends_later(machine) for machine in self.register)

    def _ends_later(self, machine: Machine) -> bool:
        """A host that is let go is stopped when it has been idle for long enough: the provider said so, and nobody waits for it here."""
        return not self._abilities.destroys and machine.phase is Phase.LEAVING and machine.looked_at > machine.asked_at

    @property
    def unconfirmed(self) -> list[str]:
        """Ids of machines that may still be there, and tokens of orders that may have brought more."""
        left = [machine.id for machine in self.register if not machine.over]
        return left + [order.token for order in self.register.bookings.open_orders()]

    @property
    def kept(self) -> list[Machine]:
        """The machines that stay."""
        return self.register.phased(Phase.KEPT)

    def shut(self) -> None:
        """Let the threads end."""
        for lane in self._lanes.values():
            lane.close()

    # --- what becomes of machines ------------------------------------------------------------------------------------

    def _launched(self, machines: list[Machine]) -> None:
        for machine in machines:
            self._arrived += 1
            machine.replacement = self.demand.is_replacement(self._arrived)
            if self._closing:
                self.register.doom(machine, self._closing)
        self._looking.soon()

    def _found(self, instances: list[Instance]) -> None:
        self._launched(self._ordering.found(instances, time.monotonic()))

    def _running(self, machine: Machine) -> None:
        assert machine.instance
        if self._awaits_console(machine, time.monotonic()):
            return
        machine.phase = Phase.SERVING
        self.on_ready(machine, address_of(machine, machine.instance, made=self._abilities.destroys))

    def _awaits_console(self, machine: Machine, now: float) -> bool:
        """Where the machine's host key is not known, and its console may show it: asked for until it does, or for long enough."""
        known = machine.console_key or machine.order.host_key or (machine.instance and machine.instance.host_key)
        if known or not self._abilities.console_key:
            return False
        machine.console_since = machine.console_since or now
        if now - machine.console_since > CONSOLE_SECONDS:
            return False
        lane = self._lanes["console"]
        if not lane.busy:
            lane.start(lambda provider: provider.console_keys(machine.id), lambda outcome: self._console_read(machine, outcome), now)
        return True

    def _console_read(self, machine: Machine, outcome: object) -> None:
        keys = outcome if isinstance(outcome, list) else []
        machine.console_key = next((key for kind in KINDS for key in keys if key.startswith(f"{kind} ")), "")
        if machine.console_key:
            self._looking.soon()

    def _gone(self, machine: Machine, why: str, reclaimed: bool) -> None:
        if not self._closing:
            self._count(machine, why)
        if machine.phase is Phase.BOOTING:
            self.register.say(f"# instance {machine.name}: {why}", important=not self._closing)
        else:
            self.on_gone(machine, why, reclaimed)

    def _count(self, machine: Machine, why: str) -> None:
        if machine.answered:
            self.demand.lost(why, replacement=machine.replacement)
        else:
            self.demand.never_ready(why, replacement=machine.replacement)

    def _overdue(self, now: float) -> None:
        for machine in self.register.phased(Phase.BOOTING, Phase.SERVING):
            if machine.answered or now - machine.since < self._terms.boot_timeout:
                continue
            why = f"not ready within {format_elapsed(self._terms.boot_timeout)}"
            self._gone(machine, why, False)
            self.register.doom(machine, why)

    # --- tags --------------------------------------------------------------------------------------------------------

    def _renew(self, now: float) -> None:
        """Owners renew the expiry in their machines' tags at half its life."""
        if not self._abilities.retags:
            self._expiring.clear()
        elif self._lanes["renew"].busy:
            return
        elif self._expiring:
            machines, self._expiring = self._expiring, []
            self._write_expiry(machines, int(time.time() + (self._terms.keep_for or 0)), now)
        elif now >= self._renew_at:
            self._renew_at = now + EXPIRY / 2
            if machines := [machine for machine in self.register if not machine.over]:
                self._write_expiry(machines, int(time.time()) + EXPIRY, now)

    def _write_expiry(self, machines: list[Machine], expires: int, now: float) -> None:
        tags = Tags(session=self.register.session, controller=controller_id(), token=machines[0].order.token, expires=expires)
        ids = [machine.id for machine in machines]
        self._lanes["renew"].start(lambda provider: provider.renew(ids, tags), self._renewed, now)

    def _renewed(self, outcome: object) -> None:
        if isinstance(outcome, CloudtaskError):
            self.register.say(f"# the expiry of machines could not be renewed: {outcome}")
            self._renew_at = time.monotonic() + 60

    def _keep(self, machine: Machine, until: float) -> None:
        machine.phase = Phase.KEPT
        self._expiring.append(machine)
        self.register.write(records.kept([machine.id], until, time.time()), sync=True)
        self.register.say(f"kept worker {machine.name}")
        self.on_kept(machine)


def address_of(machine: Machine, instance: Instance, *, made: bool = True) -> Address:
    """Where a machine is reached, and which host key it must show: the provider's word, else the one that it was given at boot.

    One that was not ``made`` but is there for good goes by its own name: the user's known_hosts files say which key it has.
    """
    assert instance.host
    return Address(
        host=instance.host,
        user=instance.user,
        port=instance.port,
        slots=instance.slots,
        local=instance.transport == "local",
        transport=instance.transport,
        alias=instance_alias(machine.id) if made else None,
        host_key=instance.host_key or machine.order.host_key or machine.console_key or None,
    )
