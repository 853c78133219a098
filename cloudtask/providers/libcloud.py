"""Providers through apache-libcloud: any of its compute drivers, by the driver's name (``--provider=digitalocean``).

A driver makes one machine for each call and knows no token, so an order is looked for before anything is made.  Tags go into the call
that makes a machine, mostly in its name (see `libcloud_dialects`); a machine that comes back without them is destroyed at once.
`cloudtask.providers.linode` and `cloudtask.providers.openstack` build on this one.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers.base import Abilities, Instance, InstanceState, Launched, Offer, Order, Tags, chosen
from cloudtask.providers.libcloud_choice import Size, choose_size, pick, size_of
from cloudtask.providers.libcloud_config import read_cloud
from cloudtask.providers.libcloud_dialects import dialect_of, tags_of, words_for
from cloudtask.providers.libcloud_errors import AbsentError, ConflictError, Speaker, ThrottledError, UnauthorisedError
from cloudtask.providers.libcloud_nodes import host_of, instance_of, missing, state_of
from cloudtask.providers.libcloud_sdk import Limits, driver_class, sdk, tame
from cloudtask.providers.libcloud_tags import index_of, name_with_tags
from cloudtask.providers.prices import known_price
from cloudtask.settings import Settings

T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
HOUR = 3600.0


class Plan(NamedTuple):
    """What an order's machines are made of; ``words`` are more of what the driver is told."""

    size: Size
    image: Any
    place: Any
    words: Mapping[str, Any]
    rows: Mapping[str, str]
    price: float | None = None


class LibcloudProvider:
    """See `cloudtask.providers.base.Provider`."""

    name = "libcloud"
    abilities = Abilities()
    billed = HOUR
    """Seconds that are paid at a time, and at least."""

    def __init__(self, settings: Settings) -> None:
        if self.name == "libcloud":
            self.name = settings.provider or self.name
        self._settings = settings
        self._cloud = read_cloud(settings, self.name, os.environ)
        self._speaker = Speaker(self.name, self._cloud.secrets)
        self._limits = Limits(self._cloud.timeout)
        self._made: Any = None
        self._planned: Plan | None = None
        self._prepare()

    def _prepare(self) -> None:
        """What can be said before the cloud is asked: the driver is there, credentials are, and machines can be logged in to."""
        self._dialect = dialect_of(self._cloud.driver, driver_class(self._cloud.driver))
        if not self._dialect.logs_in:
            raise self._cloud.error(f"the driver {self._cloud.driver} takes neither user data nor an SSH key: nobody could log in")
        self._credentials()
        told = bool(self._dialect.user_data)
        self.abilities = Abilities(settles=30.0, host_key=told, timer=told, retags=self._dialect.renames)

    # --- the contract -------------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """See `Provider`."""
        with self._call("looking at sizes and images"):
            plan = self._plan()
        place = str(getattr(plan.place, "id", "") or self._cloud.region or "")
        price = known_price(self._settings, self.name, place, plan.size.id)
        price = price if price is not None else plan.price
        return Offer(size=str(plan.size.name), region=place, price=price, minimum=self.billed, quantum=self.billed, rows=dict(plan.rows))

    def launch(self, order: Order) -> Launched:
        """See `Provider`."""
        with self._call("launching"):
            there = [node for node in self._nodes() if (tags := self._tags(node)) and tags.token == order.token]
            taken = {index_of(str(node.name)) for node in there}
            instances = [each for each in self._instances(there) if each.exists]
            free = [index for index in range(1, order.count + len(taken) + 1) if index not in taken]
            try:
                return self._complete(order, instances, free[: max(0, order.count - len(instances))])
            except UsageError as error:
                raise ProviderRefusedError(str(error)) from error

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """See `Provider`: one call for all, and one more for each that is missing there, as far as there is time."""
        if not ids:
            return []
        with self._call("describing machines"):
            found, unknown = self._by_id(ids)
            return [self._instance(found[id]) if id in found else missing(id, id not in unknown) for id in ids]

    def destroy(self, ids: Sequence[str]) -> None:
        """See `Provider`."""
        errors: list[ProviderError] = []
        with self._call("destroying machines"):
            for node in self._doomed(list(dict.fromkeys(ids))):
                try:
                    self._destroy(node)
                except AbsentError:
                    continue
                except ProviderError as error:
                    errors.append(error)
        if errors:
            raise next((each for each in errors if isinstance(each, ProviderBusyError)), errors[0])

    def find(self, session: str | None = None) -> list[Instance]:
        """See `Provider`."""
        with self._call("listing machines"):
            return chosen(self._instances(node for node in self._nodes() if self._tags(node)), session)

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """See `Provider`."""
        with self._call("renewing tags"):
            found, _ = self._by_id(ids)
            for node in found.values():
                if old := self._tags(node):
                    self._retag(node, replace(tags, token=old.token))

    def console_keys(self, id: str) -> list[str]:
        """See `Provider`: libcloud's drivers show no console."""
        return []

    # --- what drivers differ in ---------------------------------------------------------------------------------------

    def _credentials(self) -> tuple[str, ...]:
        """What the driver is made with.  Raises UsageError."""
        text = self._cloud.text
        key = text.get("token") or text.get("key")
        if not key:
            raise self._cloud.error(f"no credentials: put 'token: ...' (or key and secret) into {self._cloud.place} (or set its variable)")
        return (key, text["secret"]) if text.get("secret") else (key,)

    def _connect(self) -> Any:
        """A new driver, not yet kept within its limits."""
        return driver_class(self._cloud.driver)(*self._credentials(), **self._cloud.options)

    def _begin(self, driver: Any) -> None:
        """What a new driver must do before it is used."""

    def _words(self, order: Order, index: int) -> dict[str, Any]:
        """What the driver is told of one machine of an order."""
        return words_for(self._dialect, order, index, sdk("libcloud.compute.base").NodeAuthSSHKey)

    def _tags(self, node: Any) -> Tags | None:
        return tags_of(self._dialect, node)

    def _retag(self, node: Any, tags: Tags) -> None:
        name = name_with_tags(tags, index_of(str(node.name)) or 1)
        self._ask("renaming a machine", lambda: self._driver.ex_rename_node(node, name))

    def _state(self, node: Any) -> InstanceState:
        return state_of(node)

    def _host(self, node: Any) -> str | None:
        return host_of(node.public_ips, node.private_ips)

    def _note(self, node: Any) -> str:
        return str(node.state)

    def _place_of(self, node: Any) -> object:
        return self._cloud.region or node.extra.get("region")

    def _size_name(self, node: Any) -> object:
        return node.size or ""

    def _get(self, id: str) -> Any | None:
        """One node by its id, None where there is none, or the driver cannot tell."""
        if not self._dialect.getter or not _ID.fullmatch(id):
            return None
        return self._get_by(self._dialect.getter, id)

    def _doomed(self, ids: Sequence[str]) -> Iterable[Any]:
        """What the driver wants to be given to destroy the machines with these ids."""
        return self._by_id(ids)[0].values()

    def _choose(self) -> Plan:
        """Asks the cloud what it has.  Raises UsageError."""
        driver = self._driver
        takes = inspect.signature(driver.create_node).parameters
        place = None
        if "location" in takes:
            place = pick(self._ask("listing regions", driver.list_locations), self._cloud.region, "region", "--cloud-region")
        by_place = place is not None and "location" in inspect.signature(driver.list_sizes).parameters
        sizes = self._ask("listing sizes", lambda: driver.list_sizes(place) if by_place else driver.list_sizes())
        size = self._choose_size(sizes)
        image = pick(self._ask("listing images", driver.list_images), self._cloud.image, "image", "--cloud-image")
        words = {} if place is None else {"location": place}
        return Plan(size, image, place, words, {"image": str(image.name), "driver": f"libcloud {self._cloud.driver}"}, size.price)

    # --- what they have in common ---------------------------------------------------------------------------------------

    @property
    def _driver(self) -> Any:
        if self._made is None:
            driver = self._ask("making the driver", self._opened)
            tame(driver, self._cloud, self._limits)
            self._begin(driver)
            self._made = driver
        return self._made

    def _opened(self) -> Any:
        try:
            return self._connect()
        except TypeError as error:
            raise ProviderRefusedError(self._speaker.say("making the driver", f"{error}; see 'options' in {self._cloud.place}")) from error

    @contextmanager
    def _call(self, doing: str) -> Iterator[None]:
        """One call of the contract: it has its time, and what is wrong with an answer is the cloud's fault."""
        self._limits.begin()
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._speaker.translate(error, doing) from error

    def _ask(self, doing: str, ask: Callable[[], T]) -> T:
        """Asks the driver.  Raises ProviderError."""
        with self._speaker.translating(doing):
            return ask()

    def _plan(self) -> Plan:
        if self._planned is None:
            try:
                self._planned = self._choose()
            except UsageError as error:
                raise self._cloud.error(str(error).removeprefix(f"{self.name}: ")) from error
        return self._planned

    def _choose_size(self, sizes: Iterable[Any]) -> Size:
        wanted = self._settings.extra.get
        return choose_size(map(size_of, sizes), self._cloud.size, wanted("min_cpus"), wanted("min_memory"))

    def _nodes(self) -> list[Any]:
        return list(self._ask("listing machines", self._driver.list_nodes))

    def _get_by(self, getter: str, id: str) -> Any | None:
        try:
            return self._ask("describing a machine", lambda: getattr(self._driver, getter)(id))
        except AbsentError:
            return None

    def _by_id(self, ids: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
        """The nodes with these ids, and which ids there was no time to ask for.

        A list may leave a machine out that is new, that moved from page to page meanwhile, or whose part of the cloud is down, so
        what is not listed is asked for by its id.
        """
        wanted = set(ids)
        listed = [] if len(wanted) == 1 and self._dialect.getter else self._nodes()
        found = {str(node.id): node for node in listed if str(node.id) in wanted}
        unlisted = sorted(wanted - found.keys())
        while unlisted and self._limits.room:
            id = unlisted.pop()
            if (node := self._get(id)) is not None:
                found[id] = node
        return found, set(unlisted)

    def _instances(self, nodes: Iterable[Any]) -> list[Instance]:
        return [self._instance(node) for node in nodes]

    def _instance(self, node: Any) -> Instance:
        place, size = self._place_of(node), self._size_name(node)
        state, host, tags, note = self._state(node), self._host(node), self._tags(node), self._note(node)
        return instance_of(node, state=state, host=host, tags=tags, region=place, size=size, note=note)

    def _complete(self, order: Order, instances: list[Instance], missing: Iterable[int]) -> Launched:
        """Makes what is missing.  A request without an answer ends it: it may have been done, and the next launch will see."""
        for index in missing:
            if not self._limits.room:
                return Launched(instances, certain=False)
            try:
                instances.append(self._make(order, index))
            except ThrottledError:
                if not instances:
                    raise
                return Launched(instances, certain=False)
            except (ProviderRefusedError, UsageError) as error:
                if not instances:
                    raise
                return Launched(instances, refusal=str(error))
        return Launched(instances)

    def _make(self, order: Order, index: int) -> Instance:
        plan, create = self._plan(), self._driver.create_node
        words = {**self._words(order, index), "size": plan.size.own, "image": plan.image, **plan.words, **self._cloud.create}
        try:
            inspect.signature(create).bind(**words)
        except TypeError as error:
            raise self._cloud.error(f"the driver's words for a machine: {error}; see 'create' in {self._cloud.place}") from error
        return self._marked(self._create(lambda: create(**words)), order)

    def _create(self, create: Callable[[], T]) -> T:
        """Never twice: what is not clearly refused may have been done."""
        try:
            with self._speaker.translating("making a machine"):
                return create()
        except ConflictError as error:
            raise ProviderRefusedError(str(error)) from error
        except AbsentError as error:
            raise ProviderBusyError(str(error)) from error
        except UnauthorisedError as error:
            if error.stale:
                raise ProviderBusyError(str(error)) from error
            raise

    def _marked(self, node: Any, order: Order) -> Instance:
        """The machine that was made, if it says whose it is: one that does not would be lost, so it goes."""
        instance = self._instance(node)
        if instance.tags == order.tags:
            return instance
        self._destroy(node)
        raise ProviderRefusedError(self._speaker.say("making a machine", "it came without the tags that it was given, and is destroyed"))

    def _destroy(self, node: Any) -> None:
        if not self._ask("destroying a machine", lambda: self._driver.destroy_node(node)):
            raise ProviderBusyError(self._speaker.say("destroying a machine", f"no clear answer for {node.id}"))
