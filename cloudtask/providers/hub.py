"""The ``hub`` provider: machines that the TurnKey Hub launches on Amazon EC2, in the account that the API key belongs to.

The Hub takes no user data and no key of ours: one logs in with the keys that the Hub puts on the user's machines, and a machine's
host key is pinned at the first contact.  The one text that goes into the call which makes a machine, and comes back in every list,
is the label, so our tags stand at its beginning.  A POST makes one machine and has no token: what was made of an order is looked for
by label.  A machine is ready when it runs and its boot status is ``booted``; one that is pending cannot be destroyed, the Hub refuses.
"""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.printable import sanitize
from cloudtask.providers.base import Abilities, Instance, InstanceState, Launched, Offer, Order, Tags, absent, chosen
from cloudtask.providers.hub_api import HubApi
from cloudtask.providers.hub_settings import DEFAULT_URL
from cloudtask.providers.prices import price, read_prices
from cloudtask.settings import Settings

SIZE, TYPE, IMAGE, ARCH, USER = "m1.small", "s3", "core", "amd64", "root"
LONGEST_LABEL = 255
"""Characters: what a field of the Hub's database may hold; its clients name no limit."""

PATIENCE = 60.0
"""Seconds after which a launch of many or a destruction of many is left for the next call."""

PACE = 0.2
"""Seconds between two launches: that of the Hub's own client."""

STATES = {
    "pending": InstanceState.PENDING,
    "running": InstanceState.RUNNING,
    "stopping": InstanceState.STOPPED,
    "stopped": InstanceState.STOPPED,
    "shutting-down": InstanceState.LEAVING,
    "terminating": InstanceState.LEAVING,
    "terminated": InstanceState.GONE,
}
"""What the Hub's words mean; one that is not here is a machine that exists and is not ready."""

BOOTED = "booted"


class HubProvider:
    """See `cloudtask.providers.base.Provider`."""

    name = "hub"
    abilities = Abilities(settles=60.0)

    def __init__(self, settings: Settings) -> None:
        self._region = settings.ec2_region
        self._size = settings.ec2_size or SIZE
        self._type = settings.ec2_type or TYPE
        self._backup = settings.backup_id
        if settings.ami_id and settings.snapshot_id:
            raise UsageError("hub: --ami-id and --snapshot-id exclude each other: a machine is made from one of them")
        self._image = settings.ami_id or settings.snapshot_id or IMAGE
        self._settings = settings
        self._api = HubApi(str(settings.extra.get("hub_url") or DEFAULT_URL), _key(settings))

    def offer(self) -> Offer:
        """See `Provider`: the Hub launches on EC2, at EC2's price."""
        rows = {"image": self._image, "instance type": self._type}
        if self._backup is not None:
            rows["backup"] = str(self._backup)
        return Offer(size=self._size, region=self._region, price=self._price(), rows=rows)

    def _price(self) -> float | None:
        own = read_prices(self._settings.prices)
        found = price(self.name, self._region, self._size, own)
        return price("ec2", self._region, self._size, own) if found is None else found

    def launch(self, order: Order) -> Launched:
        """See `Provider`."""
        made = [each for each in self._list() if each.tags and each.tags.token == order.token]
        deadline = time.monotonic() + PATIENCE
        while len(made) < order.count:
            if time.monotonic() > deadline:
                return Launched(made, certain=False)
            try:
                made.append(self._launch_one(order))
            except ProviderError as error:
                if not made:
                    raise
                refused = isinstance(error, ProviderRefusedError)
                return Launched(made, refusal=str(error) if refused else "", certain=refused)
            if len(made) < order.count:
                time.sleep(PACE)
        return Launched(made)

    def _launch_one(self, order: Order) -> Instance:
        fields = {
            "region": self._region,
            "size": self._size,
            "type": self._type,
            "arch": ARCH,
            "label": label(order),
            "sec_updates": "INSTALL" if self._settings.extra.get("install_updates") else "SKIP",
        }
        if self._backup is not None:
            fields["backup_id"] = str(self._backup)
        answer = self._api.post(f"amazon/launch/{_quoted(self._image)}/", fields)
        try:
            return instance(answer)
        except ValueError as error:
            raise ProviderBusyError(f"hub: the answer to a launch makes no sense: {error}") from None

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """See `Provider`."""
        if not ids:
            return []
        found = {each.id: each for each in self._list(ids)}
        return [found.get(id) or absent(self.name, id) for id in ids]

    def find(self, session: str | None = None) -> list[Instance]:
        """See `Provider`."""
        return chosen(self._list(), session)

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`.  Raises ProviderBusyError for one that is pending: the Hub destroys it once it runs, so ask again."""
        if not ids:
            return
        state = {each.id: each.state for each in self._list(ids)}
        over, deadline = (InstanceState.LEAVING, InstanceState.GONE), time.monotonic() + PATIENCE
        failed: dict[str, ProviderError] = {}
        for id in dict.fromkeys(ids):
            if state.get(id) not in over and (error := self._terminate(id, deadline)):
                failed[id] = error
        if failed:
            self._complain(failed)

    def _terminate(self, id: str, deadline: float) -> ProviderError | None:
        if time.monotonic() > deadline:
            return ProviderBusyError(f"hub: {id}: no time left to destroy it; ask again")
        try:
            self._api.put(f"amazon/instance/{_quoted(id)}/terminate/", {"auto_unregister": "True"})
        except ProviderError as error:
            return error
        return None

    def _complain(self, failed: Mapping[str, ProviderError]) -> None:
        """Raise for the first of what could not be destroyed and is there all the same."""
        for each in self.describe(list(failed)):
            error = failed[each.id]
            if each.state is InstanceState.PENDING:
                raise ProviderBusyError(f"hub: {each.id} is {each.note}, and cannot be destroyed before it runs; ask again ({error})")
            unsure = each.state is InstanceState.ABSENT and isinstance(error, ProviderBusyError)
            if unsure or (each.exists and each.state is not InstanceState.LEAVING):
                raise error

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """See `Provider`: a label stays as it is."""
        raise ProviderRefusedError("hub: the label of a machine cannot be changed, so neither can its expiry")

    def console_keys(self, id: str) -> list[str]:
        """See `Provider`: the Hub shows no console."""
        return []

    def _list(self, ids: Sequence[str] = ()) -> list[Instance]:
        """All machines of the account that are ours, or among ``ids``.

        What makes no sense is passed over where it is somebody else's; where it is ours, no answer is certain.
        """
        answer = self._api.get("amazon/instances/", refresh_cache="True")
        if not isinstance(answer, list):
            raise ProviderBusyError("hub: the answer to a list of instances is no list")
        return list({each.id: each for each in _understood(answer, frozenset(ids))}.values())


def _understood(servers: Iterable[object], ids: frozenset[str]) -> Iterable[Instance]:
    for server in servers:
        try:
            yield instance(server)
        except ValueError as error:
            known = isinstance(server, Mapping) and (server.get("instanceid") in ids or Tags.from_text(_description(server)))
            if known or not isinstance(server, Mapping):
                raise ProviderBusyError(f"hub: an entry in the list of instances makes no sense: {error}") from None


def instance(server: object) -> Instance:
    """What the Hub says of one machine.  Raises ValueError where that makes no sense."""
    if not isinstance(server, Mapping):
        raise ValueError("not a machine")
    id, status, address = (server.get(key) for key in ("instanceid", "status", "ipaddress"))
    if not isinstance(id, str):
        raise ValueError("it has no instanceid")
    if not isinstance(status, str) or not (address is None or isinstance(address, str)):
        raise ValueError(f"status or address of {sanitize(id[:60])} is none")
    boot = _inner(server).get("boot_status")
    state = STATES.get(status, InstanceState.PENDING)
    if state is InstanceState.RUNNING and boot != BOOTED:
        state = InstanceState.PENDING
    return Instance(
        id=id,
        state=state,
        host=address or None,
        user=USER,
        tags=Tags.from_text(_description(server)),
        region=_word(server.get("region")),
        size=_word(server.get("type")),
        note=status if status != "running" else _word(boot) or "running",
    )


def _inner(server: Mapping[str, object]) -> Mapping[str, object]:
    inner = server.get("server")
    return cast("Mapping[str, object]", inner) if isinstance(inner, Mapping) else {}


def _description(server: Mapping[str, object]) -> str:
    text = _inner(server).get("description")
    return text if isinstance(text, str) else ""


def _word(value: object) -> str:
    return sanitize(value[:60]) if isinstance(value, str) else ""


def label(order: Order) -> str:
    """Our tags, and behind a blank what people may read, on one line of `LONGEST_LABEL` characters at most."""
    words = " ".join(sanitize(order.label).split())
    return f"{order.tags.as_text()} {words}"[:LONGEST_LABEL].rstrip()


def _quoted(word: str) -> str:
    return urllib.parse.quote(word, safe="")


def _key(settings: Settings) -> str:
    key = settings.hub_apikey
    if not key:
        raise UsageError("hub: an API key is needed: set HUB_APIKEY, or hub-apikey in config.yaml (it stands in the Hub's user profile)")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError("hub: the API key has characters that no key has; copy it from the Hub's user profile again")
    return key
