"""The ``hosts`` provider: machines that exist already, from an inventory file.  They are started and stopped, never made or destroyed.

An order *claims* hosts: it writes in files that all sessions of this user share (`hosts_store`) which session uses which host, and then
sees to it that they run.  A host is one session's at a time.  The files are the truth of ``find``; an id is ``NAME.TOKEN``, so that who
let go of a host does not meet it again in its next owner's hands.

``destroy`` lets go of a claim.  A host that ran when it was claimed is gone with that.  One that was started for us is stopped after
`--idle-timeout`, by whoever calls this provider then, unless another session has claimed it; until it is off it is LEAVING.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.providers.base import Abilities, Instance, InstanceState, Launched, Offer, Order, Tags, absent, chosen
from cloudtask.providers.hosts_claims import Claim, Record, claimed, overdue, released
from cloudtask.providers.hosts_inventory import Host, host_of, inventory_path, read_inventory, selected
from cloudtask.providers.hosts_power import KINDS, Standing, missing_package
from cloudtask.providers.hosts_store import Store, state_directory
from cloudtask.providers.hosts_tending import Tender
from cloudtask.settings import Settings

LOOK = 10.0
"""Seconds that an answer waits for how hosts stand."""

ACT = 0.5
"""Seconds that it waits for what follows from that."""

START = 5.0
"""Seconds that an order waits for what its start meets: a host that cannot be started is replaced by another."""

PATIENCE = 40.0
"""Seconds after which an order is left as it is for the next call: host after host could not be started."""

ORDERS: Mapping[str, Callable[[Host], Any]] = {
    "sequential": lambda host: 0,
    "random": lambda host: random.random(),
    "smart": lambda host: -_slots(host),
    "frugal": lambda host: _slots(host),
}
"""Policy -> what free hosts are sorted by; equal ones stay in the inventory's order."""


class HostsProvider:
    """See `cloudtask.providers.base.Provider`."""

    name = "hosts"
    abilities = Abilities(idempotent=True, retags=True, doubt=1.0, destroys=False)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.extra.get("hosts_file") or inventory_path(os.environ)
        self._labels: tuple[str, ...] = tuple(settings.extra.get("select") or ())
        self._policy: str = settings.extra.get("policy") or "sequential"
        self._store = Store(state_directory(os.environ))
        self._tender = Tender(self._store, settings)

    def offer(self) -> Offer:
        """See `Provider`."""
        hosts, records, now = self._hosts(), self._store.records(), time.time()
        for host in hosts:
            if missing := missing_package(host.power):
                raise UsageError(f"{self._path}: host {host.name!r}: {missing}")
        free = [host for host in hosts if _is_free(records.get(host.key), now)]
        rows = {"inventory": self._path, "hosts": f"{len(free)} of {len(hosts)} free"}
        if self._labels:
            rows["hosts"] += f" ({', '.join(self._labels)})"
        costs = any(KINDS[host.power].costs for host in hosts)
        return Offer(size="host", price=None if costs else 0.0, minimum=0.0, rows=rows)

    def launch(self, order: Order) -> Launched:
        """See `Provider`."""
        try:
            hosts = self._hosts()
        except UsageError as error:
            raise ProviderRefusedError(f"hosts: {error}") from None
        tried: set[str] = set()
        deadline = time.monotonic() + PATIENCE
        while (in_time := time.monotonic() < deadline) and (keys := self._claim(order, hosts, tried)):
            tried |= keys
            self._tender.tend(keys, into_use=True, look=START, acts=START)
        made = self._seen(lambda claim: claim.tags.token == order.token)
        if len(made) >= order.count:
            return Launched(made)
        refusal = self._refusal(hosts, order)
        if not made:
            raise (ProviderRefusedError if in_time else ProviderBusyError)(refusal)
        return Launched(made, refusal=refusal if in_time else "", certain=in_time)

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """See `Provider`."""
        wanted = frozenset(ids)
        self._tend(lambda record, claim: _id(record, claim) in wanted, into_use=True, acts=ACT)
        found = {each.id: each for each in self._seen(lambda claim: True)}
        return [found.get(id) or replace(absent(self.name, id), note=self._why_gone(id)) for id in ids]

    def _why_gone(self, id: str) -> str:
        """What is remembered of a host that could not be used."""
        name, now = id.rpartition(".")[0], time.time()
        return next((each.trouble for each in self._store.records().values() if each.host["name"] == name and each.troubled(now)), "")

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`: the hosts are let go."""
        wanted, now = frozenset(ids), time.time()
        with self._store.locked() as records:
            for record in list(records.values()):
                if record.claim and _id(record, record.claim) in wanted:
                    _put(records, released(record, now, self._settings.idle_timeout), now)
        self._tend(lambda record, claim: False, into_use=False, acts=0.0)

    def find(self, session: str | None = None) -> list[Instance]:
        """See `Provider`."""
        self._tend(lambda record, claim: session in (None, claim.tags.session), into_use=False, acts=ACT)
        return chosen(self._seen(lambda claim: True), session)

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """See `Provider`."""
        wanted = frozenset(ids)
        with self._store.locked() as records:
            for key, record in records.items():
                if record.claim and _id(record, record.claim) in wanted:
                    new = replace(tags, token=record.claim.tags.token)
                    records[key] = replace(record, claim=record.claim._replace(tags=new))

    def console_keys(self, id: str) -> list[str]:
        """See `Provider`: their keys are known as those of other hosts are."""
        return []

    # --- claims ------------------------------------------------------------------------------------------------------

    def _hosts(self) -> list[Host]:
        """The inventory's hosts that are selected.  Raises UsageError where there is none."""
        hosts = read_inventory(self._path)
        found = selected(hosts, self._labels)
        if not found:
            known = sorted({label for host in hosts for label in host.labels})
            said = " and ".join(self._labels)
            raise UsageError(f"{self._path}: no host has the label {said}; the labels there are: {', '.join(known) or 'none'}")
        return found

    def _claim(self, order: Order, hosts: Iterable[Host], tried: set[str]) -> set[str]:
        """Write down what is missing of an order, of hosts that were not tried yet; the keys of all that is to be tended."""
        now = time.time()
        with self._store.locked() as records:
            _give_back(records, now)
            mine = [record for record in records.values() for claim in record.claims if claim.tags.token == order.token]
            free = [host for host in hosts if host.key not in tried and _is_free(records.get(host.key), now)]
            taken = self._sorted(free, records, now)[: max(0, order.count - len(mine))]
            for host in taken:
                claim = Claim(order.tags, now)
                records[host.key] = claimed(records.get(host.key), host.key, host.plain, claim, self._settings.idle_timeout)
        return {host.key for host in taken} | {record.key for record in mine if record.key not in tried}

    def _sorted(self, hosts: Iterable[Host], records: Mapping[str, Record], now: float) -> list[Host]:
        """By the policy; hosts that could not be used a while ago, and those that are being stopped, come last."""

        def rank(host: Host) -> tuple[bool, bool, Any]:
            record = records.get(host.key)
            troubled = record is not None and record.troubled(now)
            return troubled, record is not None and record.stopping, ORDERS[self._policy](host)

        return sorted(hosts, key=rank)

    def _refusal(self, hosts: Sequence[Host], order: Order) -> str:
        """Why an order is not whole."""
        records, now = self._store.records(), time.time()
        said = [why for host in hosts if (why := _why_not(host, records.get(host.key), order, now))]
        more = f"; {len(said) - 5} more" if len(said) > 5 else ""
        return f"hosts: {self._path}: no more of {len(hosts)} hosts to be had" + (f": {'; '.join(said[:5])}{more}" if said else "")

    # --- what there is -----------------------------------------------------------------------------------------------

    def _tend(self, asked: Callable[[Record, Claim], bool], *, into_use: bool, acts: float) -> None:
        """See to the hosts that are asked for, and to all that nobody uses any more."""
        now = time.time()
        with self._store.locked() as records:
            _give_back(records, now)
            wanted = {key for key, record in records.items() if any(asked(record, claim) for claim in record.claims)}
            unused = {key for key, record in records.items() if record.claim is None or record.stopping}
        self._tender.tend(wanted, into_use=into_use, look=LOOK, acts=acts)
        self._tender.tend(unused - wanted, into_use=False, look=0.0, acts=0.0)

    def _seen(self, wanted: Callable[[Claim], bool]) -> list[Instance]:
        """The claims there are, as instances."""
        records = self._store.records()
        return [self._instance(record, claim) for record in records.values() for claim in record.claims if wanted(claim)]

    def _instance(self, record: Record, claim: Claim) -> Instance:
        standing = self._tender.standings.get(record.key)
        trouble = record.trouble if claim is not record.claim and record.troubled(time.time()) else ""
        note = trouble or self._tender.notes.get(record.key) or (standing.note if standing else "")
        try:
            host = host_of(record.host, "the record of a claim", record.key)
        except UsageError as error:
            host, note = Host(name=str(record.host.get("name"))), str(error)
        address = host.address or (standing.address if standing else None) or record.address
        return Instance(
            id=_id(record, claim),
            state=InstanceState.LEAVING if claim is not record.claim else _state(record, standing),
            host="localhost" if host.local else address,
            port=host.port,
            user=host.user,
            transport="local" if host.local else None,
            host_key=host.host_key,
            tags=claim.tags,
            size=host.power,
            created=claim.since,
            note=note,
            slots=host.slots,
        )


def _state(record: Record, standing: Standing | None) -> InstanceState:
    """How its owner sees a host.  Nobody's word on it is no sign that a ready one is not there."""
    if not record.ready or record.stopping:
        return InstanceState.PENDING
    stopped = standing and standing.state in (InstanceState.STOPPED, InstanceState.LEAVING)
    return InstanceState.STOPPED if stopped else InstanceState.RUNNING


def _id(record: Record, claim: Claim) -> str:
    return f"{record.host['name']}.{claim.tags.token}"


def _slots(host: Host) -> int:
    """What policies count; ``auto`` is not known before one is there."""
    return host.slots or 1


def _is_free(record: Record | None, now: float) -> bool:
    return record is None or record.claim is None or overdue(record, now)


def _why_not(host: Host, record: Record | None, order: Order, now: float) -> str:
    if record and record.claim and record.claim.tags.token != order.token:
        return f"{host.name} is used by session {record.claim.tags.session}"
    if record and record.troubled(now):
        return f"{host.name} failed: {record.trouble.removeprefix('hosts: ')}"
    return ""


def _give_back(records: dict[str, Record], now: float) -> None:
    """Let go of what its owner has not renewed for too long."""
    for record in list(records.values()):
        if overdue(record, now):
            _put(records, released(record, now, record.idle_timeout), now)


def _put(records: dict[str, Record], record: Record, now: float) -> None:
    """A record with nothing in it is none."""
    if record.claims or record.in_our_debt or record.stopping or record.troubled(now):
        records[record.key] = record
    else:
        del records[record.key]
