"""The ``fake`` provider: machines that are processes on this one, to rehearse with.

A machine of the kind ``ssh`` is an sshd of its own, run by the present user on a loopback address of its own: the login, the host key and
all that follows are as in the cloud.  A machine of the kind ``local`` is reached without ssh (transport ``fake``), and is made in a
millisecond.  Each has a home of its own; beside that all files are this machine's, which is why there can be no overlay.  They outlive
who made them, and any process of this user, with the same ``--fake-state``, finds and ends them.  What else user data says (timers,
packages) is not done.

What goes wrong is told with ``--fake-faults``: see `cloudtask.providers.fake_faults`.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.printable import sanitize
from cloudtask.providers.base import Abilities, Instance, InstanceState, Launched, Offer, Order, Tags, chosen
from cloudtask.providers.fake_faults import Share, parse_faults
from cloudtask.providers.fake_machine import Plan, chosen_host_key, login, make_sshd, sshd_program, starting
from cloudtask.providers.fake_processes import end, lives
from cloudtask.providers.fake_store import Machine, Store, StoreError
from cloudtask.providers.userdata import HostKey
from cloudtask.settings import Settings

# Not in the constructor: whatever the settings are, what was launched must be found and destroyed.
OVERLAY = "fake: its machines share this machine's files, and --overlay would be laid over them: rehearse without it"


def default_state() -> str:
    """Where machines are kept: below ``$XDG_STATE_HOME``, or ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return os.path.join(state if os.path.isabs(state) else os.path.expanduser("~/.local/state"), "cloudtask", "fake")


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a machine, in seconds: ``boot`` until one can log in (None: never), ``life`` from then to its end, ``notice`` until
    it is announced that it will be taken (None: never).  ``spared`` is that a first request to destroy it is ignored."""

    boot: float | None
    life: float | None
    notice: float | None
    spared: bool


class FakeProvider:
    """A `Provider`.  Raises UsageError where there is no sshd for the kind ``ssh``, or the faults cannot be read."""

    name = "fake"

    def __init__(self, settings: Settings) -> None:
        extra = settings.extra
        self._overlay = settings.overlay
        self._kind = str(extra.get("fake_kind") or "ssh")
        self._store = Store(os.path.abspath(extra.get("fake_state") or default_state()))
        self._said_faults = str(extra.get("fake_faults") or "")
        self._price = float(extra.get("fake_price") or 0.0)
        self._capacity: int | None = extra.get("fake_capacity")
        self._settles = float(extra.get("fake_settles") or 0.0)
        self._forgetful = bool(extra.get("fake_forgetful"))
        self._host_key = "order" if self._kind == "local" else str(extra.get("fake_host_key") or "order")
        try:
            self._faults = parse_faults(self._said_faults)
        except ValueError as error:
            raise UsageError(f"fake-faults: {error}") from error
        if '"' in self._store.root or not self._store.root.isprintable():
            raise UsageError(f"fake-state: {sanitize(self._store.root)} cannot stand in sshd's configuration; use another directory")
        if self._kind == "ssh" and sshd_program() is None:
            raise UsageError("fake: there is no sshd on this machine: install openssh-server, or use --fake-kind=local")
        self.abilities = Abilities(
            idempotent=not self._forgetful,
            retags=True,
            host_key=self._host_key == "order",
            console_key=self._host_key == "console",
            power_off_ends_billing=True,
            settles=self._settles,
            doubt=self._settles + 1.0,
        )

    def offer(self) -> Offer:
        """See `Provider`.  Raises UsageError where there is an overlay."""
        if self._overlay:
            raise UsageError(OVERLAY)
        rows = {"fake-kind": self._kind, "fake-state": self._store.root} | ({"fake-faults": self._said_faults} if self._said_faults else {})
        transport = "fake" if self._kind == "local" else "ssh"
        return Offer(size=self._kind, region="here", price=self._price, minimum=0.0, rows=rows, transport=transport)

    def launch(self, order: Order) -> Launched:
        """See `Provider`."""
        with self._call("launch"):
            if self._overlay:
                raise ProviderRefusedError(OVERLAY)
            if self._faults.refuse:
                raise ProviderRefusedError(f"fake: {self._faults.refuse}")
            all_there_are = self._looked_at_all()
            made = [each for each in all_there_are if each.tags.token == order.token and self._recognises(each)]
            missing = order.count - len(made)
            room = self._room(all_there_are)
            if missing > 0 and room == 0 and not made:
                raise ProviderRefusedError(f"fake: no machine more than {self._capacity} (fake-capacity)")
            made += [self._make(order) for _ in range(min(missing, missing if room is None else room))]
            if missing > 0 and self._struck("lost-answer", self._faults.lost_answer, order.tags.session):
                raise ProviderBusyError("fake: no answer to launch (lost-answer)")
        short = len(made) < order.count
        return Launched([_instance(each) for each in made], f"fake: no more than {self._capacity} (fake-capacity)" if short else "")

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """See `Provider`."""
        with self._call("describe"):
            found = self._known(ids)
        return [_instance(found[id]) if id in found else Instance(id=id, state=InstanceState.ABSENT) for id in ids]

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`."""
        with self._call("destroy"):
            leaving = []
            for machine in self._known(ids).values():
                if machine.spared:
                    self._store.write(replace(machine, spared=False))
                elif machine.gone is None:
                    leaving.append(self._store.write(replace(machine, leaving=machine.leaving or time.time())))
            self._looked_at(leaving)

    def find(self, session: str | None = None) -> list[Instance]:
        """See `Provider`."""
        with self._call("find"):
            found = [each for each in self._looked_at_all() if each.settled <= time.time()]
        return chosen((_instance(each) for each in found), session)

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """See `Provider`."""
        with self._call("renew"):
            for machine in self._known(ids).values():
                self._store.write(replace(machine, tags=replace(tags, token=machine.tags.token)))

    def console_keys(self, id: str) -> list[str]:
        """See `Provider`."""
        with self._call("console"):
            machine = self._known([id]).get(id)
        shown = machine and self.abilities.console_key and machine.booted is not None and machine.booted <= time.time()
        return [machine.host_key] if machine and shown and machine.host_key else []

    @contextlib.contextmanager
    def _call(self, what: str) -> Iterator[None]:
        """One request to the API, with the lock held, and with what may go wrong with it."""
        time.sleep(self._faults.slow_api)
        try:
            with self._store.locked():
                if self._struck("throttle", self._faults.throttle):
                    raise ProviderBusyError(f"fake: {what}: RequestLimitExceeded (throttle)")
                failed = self._struck("api-500", self._faults.api_500)
                if failed and self._struck("api-500 early", Share(percent=50)):
                    raise ProviderBusyError(f"fake: {what}: HTTP 500 InternalError (api-500)")
                yield
        except (OSError, StoreError, ValueError) as error:
            raise ProviderBusyError(sanitize(f"fake: {what}: {error}")) from error
        if failed:
            raise ProviderBusyError(f"fake: {what}: HTTP 500 InternalError (api-500)")

    def _struck(self, fault: str, share: Share, session: str = "") -> bool:
        return self._store.struck(fault, share, self._faults.seed, session)

    def _recognises(self, machine: Machine) -> bool:
        """An order's machine counts when the order comes again: at a forgetful provider only what a search finds."""
        return not self._forgetful or (machine.settled <= time.time() and machine.gone is None)

    def _room(self, machines: Sequence[Machine]) -> int | None:
        exist = sum(each.gone is None for each in machines)
        return None if self._capacity is None else max(0, self._capacity - exist)

    def _known(self, ids: Sequence[str]) -> dict[str, Machine]:
        """Where they stand now, by id; without those that are absent."""
        found = [machine for id in dict.fromkeys(ids) if (machine := self._store.read(id)) and machine.settled <= time.time()]
        return {each.id: each for each in self._looked_at(found)}

    def _looked_at_all(self) -> list[Machine]:
        return self._looked_at(self._store.sweep(self._store.machines()))

    def _looked_at(self, machines: Sequence[Machine]) -> list[Machine]:
        """Where they stand now: what has died is ended, and what is ended buried."""
        now = [self._leaving_if_dead(each) for each in machines]
        leaving = {each.id: each.first_process for each in now if each.leaving is not None and each.gone is None}
        if not leaving or not end(leaving):
            return now
        over = time.time() - self._faults.slow_destroy
        return [self._store.bury(each) if each.id in leaving and (each.leaving or 0.0) <= over else each for each in now]

    def _leaving_if_dead(self, machine: Machine) -> Machine:
        if machine.gone is not None or machine.leaving is not None or lives(*machine.first_process):
            return machine
        return self._store.write(replace(machine, leaving=time.time() - self._faults.slow_destroy))

    def _make(self, order: Order) -> Machine:
        """One machine, its fate with it."""
        id, now, fate = f"f-{uuid.uuid4().hex[:12]}", time.time(), self._fate(order.tags.session)
        plan = Plan(id=id, disk=self._store.disk(id), record=self._store.record(id), boot=fate.boot, life=fate.life)
        booted = None if fate.boot is None else now + fate.boot
        sshd = make_sshd(plan, order, self._chosen_key(order)) if self._kind == "ssh" else None
        with starting(plan, sshd.argv if sshd else (), {"FAKE_READY": str(booted or "never")}) as (pid, start):
            machine = Machine(
                id=id,
                tags=order.tags,
                kind=self._kind,
                pid=pid,
                start=start,
                created=now,
                booted=booted,
                settled=now + self._settles,
                notice=None if fate.notice is None else now + fate.notice,
                host=sshd.host if sshd else f"fake-{pid}-{start}",
                port=sshd.port if sshd else None,
                host_key=sshd.host_key if sshd else None,
                spared=fate.spared,
            )
            return self._store.write(machine)

    def _fate(self, session: str) -> Fate:
        faults = self._faults
        boot = None if self._struck("never-boots", faults.never_boots, session) else faults.slow_boot
        dies = faults.boots_then_dies.after if self._struck("boots-then-dies", faults.boots_then_dies, session) else None
        taken = faults.reclaim.after if self._struck("reclaim", faults.reclaim, session) else None
        ends = [dies] if dies is not None else []
        ends += [taken + faults.reclaim_notice] if taken is not None else []
        return Fate(
            boot=boot,
            life=min(ends, default=None),
            notice=None if taken is None else (boot or 0.0) + taken,
            spared=self._struck("destroy-ignored", faults.destroy_ignored, session),
        )

    def _chosen_key(self, order: Order) -> HostKey | None:
        return chosen_host_key(order) if self._host_key == "order" else None


def _instance(machine: Machine) -> Instance:
    """As its provider describes it now."""
    now = time.time()
    state = _state(machine, now)
    there = state is InstanceState.RUNNING
    return Instance(
        id=machine.id,
        state=state,
        host=machine.host if there else None,
        port=machine.port if there else None,
        user=login(),
        transport="fake" if machine.kind == "local" else None,
        tags=machine.tags,
        region="here",
        size=machine.kind,
        created=machine.created,
        reclaimed="reclaimed by the fake provider" if machine.notice is not None and machine.notice <= now else "",
    )


def _state(machine: Machine, now: float) -> InstanceState:
    if machine.gone is not None:
        return InstanceState.GONE
    if machine.leaving is not None:
        return InstanceState.LEAVING
    if machine.booted is not None and now < (machine.created + machine.booted) / 2:
        return InstanceState.PENDING
    return InstanceState.RUNNING
