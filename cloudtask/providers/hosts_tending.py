"""Whoever calls the ``hosts`` provider does a little for the hosts: starts what was claimed, prepares it, stops what is idle.

Each host is looked at and acted on in a thread of its own, since every way to start and stop one blocks, and start-up commands may take
minutes.  Nobody waits for these threads, and a killed one leaves nothing that its successor, in whatever process, would not go on with:
what is about to be done is in the record first, and one process at a time acts on a host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.model import Address
from cloudtask.providers.base import InstanceState
from cloudtask.providers.hosts_claims import Act, Record, announced, next_act, released
from cloudtask.providers.hosts_commands import login, must_here, must_there
from cloudtask.providers.hosts_inventory import Host, host_of
from cloudtask.providers.hosts_power import ALWAYS_ON, Power, Standing, Switch, looked, power_of
from cloudtask.providers.hosts_store import Store
from cloudtask.settings import Settings
from cloudtask.transports import Connection, ConnectOptions

MOST_ACTS = 8
"""Acts in a row for one host; the next call goes on."""

INTO_USE = (Act.START, Act.PREPARE)


class Tender:
    """Looks after hosts.  ``standings`` is how each was seen last, ``notes`` what went wrong with it since, by the machine's key."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.standings: dict[str, Standing] = {}
        self.notes: dict[str, str] = {}
        self._store = store
        self._settings = settings
        self._working: dict[str, Worker] = {}
        self._powers: dict[str, tuple[Mapping[str, Any], Power]] = {}

    def tend(self, keys: Iterable[str], *, into_use: bool, look: float, acts: float) -> None:
        """Begin with these hosts, and wait ``look`` seconds at most until all were looked at, and then ``acts`` for what follows.

        ``into_use``: claimed ones may be started and prepared; else it is only seen to what is on its way out of use.
        """
        wanted = list(keys)
        for key in wanted:
            if key not in self._working or not self._working[key].is_alive():
                self._working[key] = Worker(self, key, into_use)
                self._working[key].start()
        workers, deadline = [self._working[key] for key in wanted], time.monotonic() + look
        for worker in workers:
            worker.looked.wait(max(0.0, deadline - time.monotonic()))
        deadline = time.monotonic() + acts
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def look_after(self, key: str, into_use: bool, told: threading.Event) -> None:
        """One host, from a look to the last act that can be done now."""
        record = self._store.records([key]).get(key)
        if record is None:
            return
        try:
            host = host_of(record.host, "the record of a claim", key)
        except UsageError as error:
            raise ProviderBusyError(f"hosts: {error}") from None
        power = self._power_of(key, host)
        self.standings[key] = standing = looked(power)
        told.set()
        if not _is_wanted(next_act(record, standing, power.certain, time.time()), into_use):
            self._note(key, "")
            return
        with self._store.busy(key) as ours:
            if ours:
                self._act(key, Care(host, power, self._settings), into_use)

    def _power_of(self, key: str, host: Host) -> Power:
        """The power of a host, kept: some take half a second to load."""
        known = self._powers.get(key)
        if known is None or known[0] != host.plain:
            switch = Switch(host.name, host.options, host.address, host.port, host.user)
            known = self._powers[key] = (host.plain, power_of(host.power, switch))
        return known[1]

    def _act(self, key: str, care: Care, into_use: bool) -> None:
        """As long as there is something to do."""
        for _ in range(MOST_ACTS):
            self.standings[key] = standing = looked(care.power)
            act, record = self._announce(key, care, standing, into_use)
            if record is None or not _is_wanted(act, into_use):
                return
            try:
                self._done(key, act, care.perform(act, record, standing))
                self._note(key, care.warning)
            except ProviderError as error:
                self._failed(key, act, record, error)
                raise

    def _note(self, key: str, words: str) -> None:
        if words:
            self.notes[key] = words
        else:
            self.notes.pop(key, None)

    def _announce(self, key: str, care: Care, standing: Standing, into_use: bool) -> tuple[Act, Record | None]:
        """Decides on what stands in the record now, and writes down what is about to be done."""
        with self._store.locked([key]) as records:
            record, now = records.get(key), time.time()
            if record is None:
                return Act.WAIT, None
            act = next_act(record, standing, care.power.certain, now)
            if not _is_wanted(act, into_use):
                return act, record
            moved = announced(record, act, standing, now, ours_to_stop=care.stoppable, owes=care.owes)
            if moved is None:
                del records[key]
            else:
                records[key] = moved
            # An act that fails is undone from here: what was before it.
            return act, None if moved is None else record

    def _done(self, key: str, act: Act, address: str | None) -> None:
        now = time.time()
        moves = {
            Act.START: lambda record: replace(record, asked=now, stop_asked=0.0),
            Act.PREPARE: lambda record: replace(
                record, prepared=True, ready=record.claim is not None, address=address, trouble="", trouble_at=0.0
            ),
            Act.WIND_DOWN: lambda record: replace(record, owing=False, prepared=False),
            Act.STOP: lambda record: replace(record, stop_tried=now, stop_asked=now),
        }
        if act in moves:
            self._store.change(key, moves[act])

    def _failed(self, key: str, act: Act, before: Record, error: ProviderError) -> None:
        """What cannot be used is let go, and is as it was where nothing was done to it."""
        now = time.time()
        if act is Act.STOP:
            self._store.change(key, lambda record: replace(record, stop_tried=now))
        elif act in INTO_USE and isinstance(error, ProviderRefusedError):
            found, timeout = act is Act.START and not before.started, self._settings.idle_timeout
            self._store.change(
                key, lambda record: released(replace(record, started=record.started and not found), now, timeout, str(error))
            )


def _is_wanted(act: Act, into_use: bool) -> bool:
    return act is not Act.WAIT and (into_use or act not in INTO_USE)


class Worker(threading.Thread):
    """One host's thread.  It ends with the process, wherever it is."""

    def __init__(self, tender: Tender, key: str, into_use: bool) -> None:
        super().__init__(name=f"host {key}", daemon=True)
        self.looked = threading.Event()
        self._tender = tender
        self._key = key
        self._into_use = into_use

    def run(self) -> None:
        """What goes wrong is a note: the host stands as its record says."""
        try:
            self._tender.look_after(self._key, self._into_use, self.looked)
        except ProviderError as error:
            self._tender.notes[self._key] = str(error)
            if not self.looked.is_set():
                self._tender.standings.pop(self._key, None)
        finally:
            self.looked.set()


class Care:
    """The acts themselves, for one host."""

    def __init__(self, host: Host, power: Power, settings: Settings) -> None:
        self.power = power
        self.warning = ""
        self._host = host
        self._settings = settings
        self._switch = Switch(host.name, host.options, host.address, host.port, host.user)

    @property
    def stoppable(self) -> bool:
        """There is a way to stop it."""
        return self._host.power != ALWAYS_ON and not (self._host.power == "command" and self._host.options.get("stop") is None)

    @property
    def owes(self) -> bool:
        """It has shut-down commands."""
        return bool(self._host.shutdown_there or self._host.shutdown_here)

    def perform(self, act: Act, record: Record, standing: Standing) -> str | None:
        """Do it.  Returns the address of a host that is ready.  Raises ProviderError."""
        if act is Act.START:
            self.power.start()
        elif act is Act.PREPARE:
            return self._prepare(record, standing)
        elif act is Act.WIND_DOWN:
            self._wind_down(standing)
        elif act is Act.STOP:
            self.power.stop(time.time() - (record.stop_began or time.time()))
        return None

    def _prepare(self, record: Record, standing: Standing) -> str | None:
        if not record.prepared:
            # The contact comes first: commands here may need the host to be up.
            connection = self._login(standing) if self._host.startup_there else None
            try:
                for words in self._host.startup_here:
                    must_here(words, self._here(standing), self._settings.boot_timeout)
                if connection:
                    self._run_there(self._host.startup_there, connection)
            finally:
                if connection:
                    connection.close()
        return self._host.address or standing.address

    def _wind_down(self, standing: Standing) -> None:
        """Once, whether they succeed or not: a host that cannot be tidied up is stopped all the same."""
        try:
            if self._host.shutdown_there and standing.state is InstanceState.RUNNING:
                connection = self._login(standing)
                try:
                    self._run_there(self._host.shutdown_there, connection)
                finally:
                    connection.close()
        except ProviderError as error:
            self.warning = str(error)
        for words in self._host.shutdown_here:
            try:
                must_here(words, self._here(standing), self._settings.boot_timeout)
            except ProviderError as error:
                self.warning = str(error)

    def _here(self, standing: Standing) -> Switch:
        return self._switch._replace(address=self._host.address or standing.address)

    def _login(self, standing: Standing) -> Connection:
        host, settings = self._host, self._settings
        place = host.address or standing.address
        if place is None:
            raise ProviderBusyError(f"hosts: {host.name}: it has no address yet")
        address = Address(host=place, user=host.user, port=host.port, local=host.local, host_key=host.host_key)
        options = ConnectOptions(user=settings.user, identity=settings.ssh_identity, ssh_config=settings.ssh_config)
        return login(address, settings.transport, options, host.name)

    def _run_there(self, commands: Iterable[str], connection: Connection) -> None:
        for command in commands:
            must_there(command, self._host.name, connection, self._settings.boot_timeout)
