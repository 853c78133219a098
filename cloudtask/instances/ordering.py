"""Orders under way: given, answered, given again when the answer was lost, and kept open while nobody can know what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cloudtask.errors import CloudtaskError, ProviderRefusedError
from cloudtask.instances import orders
from cloudtask.instances.calls import Lane
from cloudtask.instances.demand import Demand
from cloudtask.instances.machine import Machine, Register
from cloudtask.instances.orders import Customer
from cloudtask.providers import Instance, Launched, Order
from cloudtask.session import records
from cloudtask.session.bookings import OrderRecord
from cloudtask.turn import Turn

TRIES = 6
"""Times that an order is given until no more are launched for want of an answer."""


@dataclass
class Pending:
    """An order that is not settled.  ``order`` is None where it cannot be given again; ``asks`` is False once it is not to be."""

    record: OrderRecord
    order: Order | None
    tries: int = 0
    not_before: float = 0.0
    asks: bool = True


class Ordering:
    """Gives orders, one at a time, and takes in what they bring."""

    def __init__(self, register: Register, demand: Demand, lane: Lane, customer: Customer, turn: Turn) -> None:
        self._register = register
        self._demand = demand
        self._lane = lane
        self._customer = customer
        self._turn = turn
        self._pending: list[Pending] = []
        self._starting = False
        self._asked: Pending | None = None
        """The order that the provider is asked for now."""
        self._no_more = False
        self.doubted_at = 0.0
        """When an order came to be in doubt last, on the monotonic clock."""
        self.on_launched: Callable[[list[Machine]], None] = lambda machines: None

    @property
    def coming(self) -> int:
        """Machines that were ordered and that nobody knows the ids of."""
        return sum(each.record.count - len(self._register.bookings.of_order(each.record.token)) for each in self._pending if each.asks)

    @property
    def under_way(self) -> bool:
        """A provider is being asked, or is about to be."""
        return self._lane.busy or self._starting or any(each.asks for each in self._pending)

    @property
    def in_doubt(self) -> list[OrderRecord]:
        """Orders that may have brought machines that nobody knows of."""
        return [each.record for each in self._pending if each.tries]

    def take_up(self, record: OrderRecord, *, again: bool) -> None:
        """An order of an earlier run that was never settled; ``again``: its machines are needed, so it is given again."""
        order = orders.same_order(self._register.session, record)
        # The key of the session that it was given with is gone with an earlier run's end: its machines would let nobody in.
        equal = order is not None and order.public_key == self._customer.public_key
        self._pending.append(Pending(record, order, tries=1, asks=again and equal))

    def give(self, count: int) -> None:
        """Order machines: on disk first."""
        record, order = orders.new_order(self._customer, count, time.time())
        self._register.write(records.order(record), sync=True)
        self._pending.append(Pending(record, order))
        self._starting = True
        self._turn.afterwards(self._started)

    def _started(self) -> None:
        self._starting = False
        self.step(time.monotonic())

    def step(self, now: float) -> None:
        """Give the next order that is due."""
        if self._lane.busy or self._starting:
            return
        pending = next((each for each in self._pending if each.asks and each.order and now >= each.not_before), None)
        if pending and pending.order:
            order = pending.order
            pending.tries += 1
            self._asked = pending
            self._lane.start(lambda provider: provider.launch(order), lambda outcome: self._answered(pending, outcome), now)

    def give_no_more(self) -> None:
        """What was not given yet is not; what had no answer, or gets none now, stays in doubt."""
        self._no_more = True
        for pending in list(self._pending):
            if not pending.tries:
                self._close(pending, "the run ended first")
            elif pending is not self._asked:
                self._doubt(pending)

    def found(self, instances: list[Instance], now: float) -> list[Machine]:
        """Take in what a provider lists for orders of this session that we did not know of."""
        fresh: list[Machine] = []
        for token, record in self._register.bookings.orders.items():
            ids = [each.id for each in instances if each.tags and each.tags.token == token]
            fresh += self._register.take_in(ids, record, time.time(), now)
        self._pending = [each for each in self._pending if each.record.token not in self._register.bookings.closed]
        return fresh

    def _answered(self, pending: Pending, outcome: object) -> None:
        now = time.monotonic()
        self._asked = None
        if isinstance(outcome, Launched):
            machines = self._register.take_in([each.id for each in outcome.instances], pending.record, time.time(), now)
            for machine in machines:
                self._register.say(f"# booting instance {machine.name} ...")
            self.on_launched(machines)
            self._settle(pending, outcome, now)
        elif isinstance(outcome, ProviderRefusedError):
            self._refused(pending, str(outcome), now)
        else:
            why = str(outcome) if isinstance(outcome, CloudtaskError) else f"the provider answers with {type(outcome).__name__}"
            self._unanswered(pending, why, now)

    def _settle(self, pending: Pending, outcome: Launched, now: float) -> None:
        missing = pending.record.count - len(outcome.instances)
        if missing <= 0:
            self._demand.filled()
            self._close(pending, "")
        elif outcome.certain:
            why = outcome.refusal or "the provider gave fewer"
            self._register.say(f"# failed to launch {missing} of {pending.record.count} instances: {why}", important=True)
            self._close(pending, why)
            self._demand.fell_short(self._present())
        else:
            self._unanswered(pending, outcome.refusal or "the answer is not complete", now)

    def _refused(self, pending: Pending, why: str, now: float) -> None:
        self._register.say(f"# failed to launch instance: {why}", important=True)
        self._demand.refused(why, self._present(), now)
        if pending.tries == 1:
            self._close(pending, why)
        else:
            # What became of the first try nobody knows: only the provider's lists can tell.
            self._doubt(pending)

    def _unanswered(self, pending: Pending, why: str, now: float) -> None:
        self._register.say(f"# no answer to an order of {pending.record.count}: {why}", important=pending.tries == 1)
        wait = max(self._demand.unanswered(pending.tries, now), now + self._customer.abilities.settles)
        pending.not_before = now + 1.0 if self._customer.abilities.idempotent and pending.tries == 1 else wait
        if pending.tries >= TRIES:
            self._demand.stop(f"the provider does not answer: {why}")
        if pending.tries >= TRIES or self._no_more:
            self._doubt(pending)

    def _doubt(self, pending: Pending) -> None:
        """It is not given again: what came of it only the provider's lists can tell."""
        pending.asks = False
        self.doubted_at = time.monotonic()

    def _close(self, pending: Pending, why: str) -> None:
        token = pending.record.token
        if token not in self._register.bookings.closed:
            self._register.write(records.closed(token, why, time.time()))
        orders.forget_order(self._register.session, token)
        self._pending = [each for each in self._pending if each is not pending]

    def _present(self) -> int:
        return sum(1 for machine in self._register if not machine.over)
