"""Machines of libvirt: clones of a base domain, or of a domain XML template; QEMU's virtual machines and LXC's containers.

The order of work is what keeps anything from being left behind.  A domain is defined first, with its tags and a list of what will be made
with it (`cloudtask.providers.libvirt_marks`), then its disks are made, then it is started; and at its end it is stopped, its disks
are deleted, and then it is undefined.  So whatever exists is listed by a domain that `find` lists.  Its name and uuid come
from the order's token: libvirt itself refuses to have one twice.

The base must be shut off, and stay so while it has clones: their disks are overlays.  A container's root directory is copied, with
key, host key and timer in it; other ``<filesystem>`` elements are shared as they are.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from functools import cache

from cloudtask.errors import ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers.base import Abilities, Instance, InstanceState, Launched, Offer, Order, Tags, chosen
from cloudtask.providers.libvirt_calls import Calls
from cloudtask.providers.libvirt_disks import Disks, check_seed
from cloudtask.providers.libvirt_domains import Domains
from cloudtask.providers.libvirt_making import Kind, Making, host_of
from cloudtask.providers.libvirt_xml import Blueprint, identity
from cloudtask.providers.prices import known_price
from cloudtask.settings import Settings

_URI = re.compile(r"[a-z][a-z0-9]*(\+[a-z0-9]+)?://[^/\[\]]*(\[[0-9A-Fa-f:.]+\](:[0-9]+)?)?/.*")
_LAUNCH = 30.0
"""Seconds after which ``launch`` begins no further machine: the rest is asked for again."""
_TOGETHER = 60.0
"""Seconds that all of libvirt's calls may take which one of ours needs."""


class LibvirtProvider:
    """See `cloudtask.providers.base`.  Raises UsageError without libvirt-python, and for containers of another machine."""

    name = "libvirt"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._base: str | None = settings.extra.get("libvirt_base")
        self._template: str | None = settings.extra.get("libvirt_xml")
        uri: str = settings.extra.get("libvirt_uri") or "qemu:///system"
        self._kind = _kind(settings, uri)
        self.abilities = _abilities(uri, self._kind)
        self._calls = Calls(uri)
        self._domains = Domains(self._calls)
        disks = Disks(self._calls, settings.extra.get("libvirt_pool"))
        self._making = Making(self._calls, disks, self._domains, self._kind)

    def offer(self) -> Offer:
        """Looks at the base, and says what is wrong with it before anything is launched."""
        self._calls.begin(_TOGETHER)
        try:
            blueprint = Blueprint(self._base_text())
            if self._kind.container:
                blueprint.root()
            blueprint.sources()
        except (ValueError, ProviderRefusedError) as error:
            raise UsageError(f"{self._base_name()}: {error}") from None
        size, uri = self._base_name(), self._calls.shown_uri
        cost = known_price(self._settings, self.name, uri, size)
        return Offer(size=size, region=uri, price=0.0 if cost is None else cost, rows={"libvirt-uri": uri, "machine": blueprint.size})

    def launch(self, order: Order) -> Launched:
        """Makes one after the other; see `Making.make`."""
        self._calls.begin(_LAUNCH + _TOGETHER)
        base, began = cache(self._base_or_refusal), time.monotonic()
        for index in range(1, order.count + 1):
            if time.monotonic() - began > _LAUNCH:
                return Launched(self._made(order), certain=False)
            try:
                self._making.make(order, index, base)
            except ProviderRefusedError as error:
                return self._refused(order, index, error)
        return Launched(self._made(order))

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """Some questions for each: libvirt has no call for many."""
        self._calls.begin(_TOGETHER)
        return [self._describe(id) for id in ids]

    def destroy(self, ids: Sequence[str]) -> None:
        """Raises ProviderRefusedError for a domain that is not ours, after all others were dealt with."""
        self._calls.begin(_TOGETHER)
        failures: list[ProviderError] = []
        for id in ids:
            try:
                self._destroy(id)
            except ProviderError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def find(self, session: str | None = None) -> list[Instance]:
        """All domains are asked for their mark."""
        self._calls.begin(_TOGETHER)
        return chosen((self._domains.instance(domain, mark) for domain, mark in self._domains.marked()), session)

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """Those that are gone are passed over."""
        self._calls.begin(_TOGETHER)
        for id in ids:
            domain = self._domains.by_id(id)
            mark = self._domains.mark(domain) if domain is not None else None
            if mark:
                self._domains.write(domain, mark.renewed(tags))

    def console_keys(self, id: str) -> list[str]:
        """libvirt's consoles have no memory."""
        return []

    def _base_name(self) -> str:
        return self._base or os.path.splitext(os.path.basename(self._template or ""))[0]

    def _base_text(self) -> str:
        """The XML that machines are made of."""
        if bool(self._base) == bool(self._template):
            raise UsageError("--provider=libvirt needs --libvirt-base=NAME or --libvirt-xml=FILE, one of them")
        return self._template_text(self._template) if self._template else self._domain_text(self._base or "")

    def _base_or_refusal(self) -> str:
        """The same for ``launch``, whose order may be a resumed one's, from settings that are no longer good."""
        try:
            return self._base_text()
        except UsageError as error:
            raise self._calls.refused(str(error)) from None

    def _template_text(self, path: str) -> str:
        try:
            with open(path, encoding="utf-8") as file:
                return file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--libvirt-xml={path}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None

    def _domain_text(self, name: str) -> str:
        domain = self._domains.by_name(name)
        if domain is None:
            raise self._calls.refused(f"there is no domain {name} to clone")
        if self._domains.active(domain):
            raise self._calls.refused(f"domain {name} runs: shut it off, so that its disks can be cloned")
        libvirt = self._calls.libvirt
        return str(self._calls.ask(domain.XMLDesc, libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))

    def _made(self, order: Order) -> list[Instance]:
        found = [self._describe(identity(order.token, index).uuid) for index in range(1, order.count + 1)]
        return [each for each in found if each.exists]

    def _refused(self, order: Order, index: int, error: ProviderRefusedError) -> Launched:
        """What was begun of the refused machine is taken away; those before it, and what an earlier try made, stay."""
        id = identity(order.token, index).uuid
        domain = self._domains.by_id(id)
        mark = self._domains.mark(domain) if domain is not None else None
        if mark and not mark.started and not self._domains.active(domain):
            self._making.unmake(domain, mark)
        if not (made := self._made(order)):
            raise error
        return Launched(made, refusal=str(error))

    def _describe(self, id: str) -> Instance:
        domain = self._domains.by_id(id)
        if domain is None:
            return Instance(id=id, state=InstanceState.ABSENT)
        return self._domains.instance(domain, self._domains.mark(domain))

    def _destroy(self, id: str) -> None:
        domain = self._domains.by_id(id)
        if domain is None:
            return
        mark = self._domains.mark(domain)
        if mark is not None:
            self._making.unmake(domain, mark)
        elif self._domains.by_id(id) is not None:
            raise self._calls.refused(f"{id} is no machine of cloudtask's, and is left alone")


def _kind(settings: Settings, uri: str) -> Kind:
    """What machines of this URI are like.  Raises UsageError where that cannot be served."""
    if not _URI.fullmatch(uri):
        raise UsageError(f"--libvirt-uri={uri}: not a URI of libvirt's, as in qemu:///system or qemu+ssh://HOST/system")
    driver = uri.partition(":")[0].partition("+")[0]
    container, wanted = driver == "lxc", settings.extra.get("libvirt_seed", "yes") == "yes"
    if container and host_of(uri):
        raise UsageError(f"--libvirt-uri={uri}: containers are made on this machine only, as their files are copied here")
    seeded = wanted and driver not in ("lxc", "test")
    if seeded:
        check_seed()
    login = settings.extra.get("libvirt_user") or settings.user
    return Kind(seeded=seeded, container=container, filled=container and wanted, login=login, host=host_of(uri) or "127.0.0.1")


def _abilities(uri: str, kind: Kind) -> Abilities:
    """A seed or a filled root directory carry host key and timer; without them, and in libvirt's mock driver, nothing does."""
    carried = kind.seeded or kind.filled
    return Abilities(idempotent=True, retags=True, host_key=carried, timer=carried, power_off_ends_billing=True, doubt=60.0)
