"""What machines cost: pure arithmetic on prices an hour and how long they were there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cloudtask.session.bookings import Bookings, InstanceRecord

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Bill:
    """``hours`` of machines, and their ``dollars``; ``unpriced`` machines are not in the latter."""

    created: int
    gone: int
    hours: float
    dollars: float
    unpriced: int


def charge(price: float, minimum: float, quantum: float, seconds: float) -> float:
    """Dollars for one machine: billed for ``minimum`` seconds at least, in steps of ``quantum``."""
    billed = max(minimum, seconds, 0.0)
    if quantum > 0:
        billed = math.ceil(round(billed / quantum, 6)) * quantum
    return price * billed / HOUR


def bill(bookings: Bookings, now: float) -> Bill:
    """All machines of a session until ``now`` (seconds since 1970)."""
    found = list(bookings.instances.values())
    dollars = sum(cost(bookings, each, now) or 0.0 for each in found)
    return Bill(
        created=len(found),
        gone=sum(1 for each in found if each.destroyed),
        hours=sum(lifetime(each, now) for each in found) / HOUR,
        dollars=dollars,
        unpriced=sum(1 for each in found if cost(bookings, each, now) is None),
    )


def lifetime(instance: InstanceRecord, now: float) -> float:
    """Seconds that a machine was there."""
    return max(0.0, (instance.destroyed or now) - instance.launched)


def cost(bookings: Bookings, instance: InstanceRecord, now: float) -> float | None:
    """Dollars for one machine so far, None where its price is unknown."""
    order = bookings.orders.get(instance.token)
    if order is None or order.price is None:
        return None
    return charge(order.price, order.minimum, order.quantum, lifetime(instance, now))


def hourly(bookings: Bookings, instances: Iterable[InstanceRecord]) -> float:
    """Dollars an hour for machines; unknown prices count as none."""
    return sum(bookings.orders[each.token].price or 0.0 for each in instances if each.token in bookings.orders)
