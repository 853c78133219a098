"""What the journal knows of machines: orders, and the instances that came of them, as a fold over its records.

Part of `state.SessionState`; ``apply`` there hands the events on machines to the functions in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class OrderRecord:
    """An order as it was given: with it an equal one can be given again.

    Times are seconds since 1970.  ``price`` is dollars an hour for each machine (None: unknown), ``minimum`` and ``quantum`` seconds that
    are billed at least and at a time.  ``host_key`` is the public one that the machines were to get.
    """

    token: str
    provider: str
    count: int
    label: str
    time: float
    expires: int
    price: float | None = None
    minimum: float = 60.0
    quantum: float = 1.0
    size: str = ""
    region: str = ""
    host_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class InstanceRecord:
    """A machine that came of an order.  ``destroying`` and ``destroyed`` are times, 0 where it was not; ``kept_until`` is one, too.

    ``worker`` is the number of the worker that it became, 0 for none.
    """

    id: str
    token: str
    launched: float
    worker: int = 0
    destroying: float = 0.0
    destroyed: float = 0.0
    kept_until: float = 0.0

    @property
    def ours(self) -> bool:
        """Whether we have to see to its end."""
        return not self.destroyed and not self.kept_until


@dataclass
class Bookings:
    """All orders and instances of a session, by token and by id; ``closed`` are the tokens of orders that bring no more machines."""

    orders: dict[str, OrderRecord] = field(default_factory=dict)
    instances: dict[str, InstanceRecord] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    def of_order(self, token: str) -> list[InstanceRecord]:
        """The machines that came of an order so far."""
        return [each for each in self.instances.values() if each.token == token]

    def open_orders(self) -> list[OrderRecord]:
        """Orders of which machines may exist that nobody knows the ids of."""
        return [order for token, order in self.orders.items() if token not in self.closed]

    def ours(self) -> list[InstanceRecord]:
        """The machines whose end we have to see to."""
        return [each for each in self.instances.values() if each.ours]

    @property
    def unsettled(self) -> bool:
        """True while some machine of the session exists or may exist."""
        return bool(self.open_orders() or self.ours())

    def unsettled_orders(self) -> list[OrderRecord]:
        """The orders of which machines exist, or may."""
        tokens = {each.token for each in self.ours()}
        return [order for token, order in self.orders.items() if token in tokens or token not in self.closed]

    def became(self, instance: str, worker: int) -> None:
        """A machine is contacted as this worker."""
        if instance in self.instances:
            self.instances[instance] = replace(self.instances[instance], worker=worker)

    def _change(self, ids: list[str], **changes: Any) -> list[int]:
        """Change these instances; the workers that they became."""
        known = [id for id in ids if id in self.instances]
        for id in known:
            self.instances[id] = replace(self.instances[id], **changes)
        return [self.instances[id].worker for id in known if self.instances[id].worker]

    def on_order(self, record: Mapping[str, Any]) -> None:
        """It was given."""
        names = ("provider", "count", "label", "time", "expires", "price", "minimum", "quantum", "size", "region", "host_key")
        found = {name: record[name] for name in names if name in record}
        self.orders[record["order"]] = OrderRecord(token=record["order"], **found)

    def on_launched(self, record: Mapping[str, Any]) -> None:
        """It was answered.  An order that has all its machines is closed."""
        token = record["launched"]
        for id in record["instances"]:
            self.instances.setdefault(id, InstanceRecord(id=id, token=token, launched=record["time"]))
        if token in self.orders and len(self.of_order(token)) >= self.orders[token].count:
            self.closed.add(token)

    def on_closed(self, record: Mapping[str, Any]) -> None:
        """It brings no more."""
        self.closed.add(record["closed"])

    def on_destroying(self, record: Mapping[str, Any]) -> None:
        """The provider is asked to."""
        self._change(record["destroying"], destroying=record["time"])

    def on_destroyed(self, record: Mapping[str, Any]) -> list[int]:
        """The provider says so; the workers that they were."""
        return self._change(record["destroyed"], destroyed=record["time"])

    def on_kept(self, record: Mapping[str, Any]) -> list[int]:
        """They stay; the workers that they were."""
        return self._change(record["kept"], kept_until=record["until"])


RULES: dict[str, Callable[[Bookings, Mapping[str, Any]], list[int] | None]] = {
    "order": Bookings.on_order,
    "launched": Bookings.on_launched,
    "closed": Bookings.on_closed,
    "destroying": Bookings.on_destroying,
    "destroyed": Bookings.on_destroyed,
    "kept": Bookings.on_kept,
}
"""Event -> what it does; the answer is the workers that are gone with it."""
