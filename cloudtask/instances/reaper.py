"""Destroying what a dead run left: by what the provider lists and by what the journal says, and writing down what the provider answers.

For who holds the session's lock, and starts nothing.  Unlike `pool` it may block: nobody waits for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass

from cloudtask.errors import ProviderBusyError, ProviderError
from cloudtask.instances import costs, orders
from cloudtask.instances.calls import Waiting
from cloudtask.instances.looking import AGAIN_SECONDS
from cloudtask.instances.machine import short_id
from cloudtask.providers import Instance, InstanceState
from cloudtask.providers.base import chosen
from cloudtask.session import records
from cloudtask.session.bookings import RULES, InstanceRecord, OrderRecord
from cloudtask.session.session import Session

_LOOK_SECONDS = 0.2
_LONG_AGO = 86400.0
"""What an order that was given so long ago has made is listed, or there is none: one look is enough."""
_SLOWEST = 5.0


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What is left of a session's machines: ids that exist or may, tokens of orders in doubt, and what all that costs an hour.

    ``error`` is why the provider could not be asked, empty where it could.
    """

    instances: tuple[str, ...]
    orders: tuple[str, ...]
    hourly: float
    error: str = ""

    @property
    def none(self) -> bool:
        """Everything is proven to be gone."""
        return not self.instances and not self.orders


class Reaper:
    """One session's machines, to their end.  ``quiet`` is when (seconds since 1970) the provider first listed nothing unknown."""

    def __init__(self, session: Session, provider: Waiting) -> None:
        self._session = session
        self._provider = provider
        self._abilities = provider.call(lambda provider: provider.abilities)
        self._bookings = session.state.bookings

    def destroy(self, quiet_since: float | None, patience: float) -> tuple[Remains, float | None]:
        """Destroy what there is, and wait up to ``patience`` seconds for the provider to say that it is gone.

        ``quiet_since`` and the second answer are the time since which the provider has listed nothing that was not known (seconds
        since 1970), None where it has not.
        """
        error, quiet = "", quiet_since
        try:
            fresh = self._find()
            quiet = None if fresh else quiet_since or time.time()
            self._close_quiet_orders(quiet)
            self._ask()
        except ProviderError as failure:
            error = str(failure)
        try:
            self._await_end(patience)
        except ProviderError as failure:
            error = error or str(failure)
        self._session.sync()
        return self.remains(error), quiet

    def remains(self, error: str = "") -> Remains:
        """What is left, by what is known now."""
        left = self._bookings.ours()
        return Remains(
            instances=tuple(each.id for each in left),
            orders=tuple(order.token for order in self._bookings.open_orders()),
            hourly=costs.hourly(self._bookings, left),
            error=error,
        )

    # --- steps -------------------------------------------------------------------------------------------------------

    def _find(self) -> list[str]:
        """What the provider lists for the session and the journal does not know, which it does from now on."""
        session = self._session.uid
        found = self._provider.call(lambda provider: chosen(provider.find(session), session))
        fresh = [each for each in found if each.id not in self._bookings.instances]
        for instance in fresh:
            self._adopt(instance)
        if fresh:
            self._session.log(f"# watchdog: the provider lists what nobody knew of: {_names(each.id for each in fresh)}")
        return [each.id for each in fresh]

    def _adopt(self, instance: Instance) -> None:
        assert instance.tags
        token = instance.tags.token
        if token not in self._bookings.orders:
            name, expires = self._provider.call(lambda provider: provider.name), instance.tags.expires
            order = OrderRecord(token=token, provider=name, count=1, label="", time=time.time(), expires=expires)
            self._write(records.order(order))
        self._write(records.launched(token, [instance.id], instance.created or time.time()), sync=True)

    def _close_quiet_orders(self, quiet: float | None) -> None:
        for order in self._bookings.open_orders():
            if quiet is None:
                return
            now = time.time()
            if now - max(quiet, order.time) >= self._abilities.doubt or now - order.time >= _LONG_AGO:
                orders.forget_order(self._session.uid, order.token)
                self._write(records.closed(order.token, "the provider lists nothing more of it", time.time()), sync=True)

    def _ask(self) -> None:
        left = self._bookings.ours()
        if not left:
            return
        if fresh := [each.id for each in left if not each.destroying]:
            self._session.log(f"# watchdog: destroying zombie instances: {_names(fresh)}")
            self._write(records.destroying(fresh, "their controller is gone", time.time()), sync=True)
        ids = [each.id for each in left]
        self._provider.call(lambda provider: provider.destroy(ids))

    def _await_end(self, patience: float) -> None:
        """Look until everything is gone; ask again for what is still there after a while, and for answers that did not come."""
        began = asked = time.monotonic()
        wait = _LOOK_SECONDS
        seen_absent: set[str] = set()
        while self._bookings.ours():
            late = time.monotonic() - began > patience
            try:
                seen_absent = self._look(seen_absent)
                if time.monotonic() - asked > AGAIN_SECONDS:
                    asked = time.monotonic()
                    self._ask()
            except ProviderBusyError:
                if late:
                    raise
            if late:
                return
            if self._bookings.ours():
                time.sleep(wait)
                wait = min(_SLOWEST, wait * 1.5)

    def _look(self, seen_absent: set[str]) -> set[str]:
        """Write down what is gone; the ids that the provider did not know, which it has to say twice."""
        left = self._bookings.ours()
        ids = [each.id for each in left]
        states = self._provider.call(lambda provider: {each.id: each.state for each in provider.describe(ids)})
        absent = {id for id, state in states.items() if state is InstanceState.ABSENT}
        settled = [each.id for each in left if each.id in absent & seen_absent and self._is_old(each)]
        if gone := settled + [id for id in ids if states.get(id) is InstanceState.GONE]:
            self._write(records.destroyed(gone, time.time()))
            self._session.log(f"# watchdog: destroyed zombie instances: {_names(gone)}")
        return absent

    def _is_old(self, instance: InstanceRecord) -> bool:
        """It is no longer too new for the provider to list it."""
        return time.time() - instance.launched >= self._abilities.settles

    def _write(self, record: bytes, sync: bool = False) -> None:
        self._session.append(record)
        if sync:
            self._session.sync()
        fields = json.loads(record)
        RULES[next(iter(fields))](self._bookings, fields)


def _names(ids: Iterable[str]) -> str:
    return " ".join(short_id(id) for id in ids)


def destroy_unwritten(
    provider: Waiting, session: str, spared: Container[str], why: str, quiet_since: float | None
) -> tuple[Remains, float | None]:
    """For a session whose journal cannot be written (``why``): destroy what the provider lists for it, but for ``spared`` ids.

    Answers as `Reaper.destroy` does.  Raises CloudtaskError.
    """
    there = [id for each in provider.call(lambda provider: chosen(provider.find(session), session)) if (id := each.id) not in spared]
    if there:
        provider.call(lambda provider: provider.destroy(there))
        return Remains(instances=tuple(there), orders=(), hourly=0.0, error=why), None
    quiet = quiet_since or time.time()
    certain = time.time() - quiet >= provider.call(lambda provider: provider.abilities).doubt
    return Remains(instances=(), orders=() if certain else (session,), hourly=0.0, error=why), quiet


def describe(remains: Remains) -> str:
    """What is left, in words."""
    parts = [short_id(id) for id in remains.instances] + [f"order {token} (it may have made machines)" for token in remains.orders]
    price = f", ${remains.hourly:.4g} an hour" if remains.hourly else ""
    return f"{', '.join(parts)}{price}" + (f" ({remains.error})" if remains.error else "")
