"""Domains that exist: looked up, read as instances, and their marks written."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from typing import Any

from cloudtask.providers.base import Instance, InstanceState
from cloudtask.providers.libvirt_calls import Calls
from cloudtask.providers.libvirt_marks import NAMESPACE, PREFIX, Mark, read_mark

_ACTIVE = ("RUNNING", "BLOCKED")
_SOURCES = ("LEASE", "AGENT", "ARP")
_NO_ADDRESSES = (
    "NO_SUPPORT", "OPERATION_INVALID", "OPERATION_UNSUPPORTED", "OPERATION_FAILED", "ARGUMENT_UNSUPPORTED", "CONFIG_UNSUPPORTED",
    "AGENT_UNRESPONSIVE", "AGENT_UNSYNCED", "INTERNAL_ERROR", "SYSTEM_ERROR", "NO_NETWORK", "NO_DOMAIN", "INVALID_ARG",
)  # fmt: skip
"""A guest without an agent, a network that libvirt does not lease, a driver that cannot tell: no address yet, and no reason to stop."""


class Domains:
    """All domains of one libvirt; those that we may touch have a mark."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._libvirt = calls.libvirt

    def by_id(self, id: str) -> Any:
        """The domain with this uuid, or None."""
        return self._calls.on("lookupByUUIDString", id, none_for=("NO_DOMAIN", "INVALID_ARG")) if _is_uuid(id) else None

    def by_name(self, name: str) -> Any:
        """The domain with this name, or None."""
        return self._calls.on("lookupByName", name, none_for=("NO_DOMAIN",))

    def marked(self) -> Iterator[tuple[Any, Mark]]:
        """All machines of ours."""
        for domain in self._calls.on("listAllDomains", 0):
            if mark := self.mark(domain):
                yield domain, mark

    def mark(self, domain: Any) -> Mark | None:
        """None where it is not ours, or gone."""
        kind = self._libvirt.VIR_DOMAIN_METADATA_ELEMENT
        text = self._calls.ask(domain.metadata, kind, NAMESPACE, 0, none_for=("NO_DOMAIN_METADATA", "NO_DOMAIN"))
        return read_mark(text) if text else None

    def write(self, domain: Any, mark: Mark) -> None:
        """Replaces its mark, where it runs and for when it is started.  Silent where it is gone."""
        flags = self._libvirt.VIR_DOMAIN_AFFECT_CONFIG | (self._libvirt.VIR_DOMAIN_AFFECT_LIVE if self.active(domain) else 0)
        kind = self._libvirt.VIR_DOMAIN_METADATA_ELEMENT
        self._calls.ask(domain.setMetadata, kind, mark.as_text(), PREFIX, NAMESPACE, flags, none_for=("NO_DOMAIN",))

    def active(self, domain: Any) -> bool:
        """It runs, or is paused."""
        return bool(self._calls.ask(domain.isActive, none_for=("NO_DOMAIN",)))

    def instance(self, domain: Any, mark: Mark | None) -> Instance:
        """As the provider answers it.  One that is gone meanwhile is ABSENT.  Raises ProviderError."""
        id = str(domain.UUIDString())
        found = self._calls.ask(domain.state, 0, none_for=("NO_DOMAIN",))
        if found is None:
            return Instance(id=id, state=InstanceState.ABSENT)
        name = self._state_names().get(found[0], "")
        state = _state(name, mark)
        host = self._host(domain, mark) if state is InstanceState.RUNNING else None
        reach = {"port": mark.reach.port, "user": mark.reach.user} if mark else {}
        created = min(float(mark.created), time.time()) if mark else 0.0
        try:
            return Instance(
                id=id, state=state, host=host, tags=mark.tags if mark else None, created=created, note=name.lower(),
                region=self._calls.shown_uri, **reach,  # type: ignore[arg-type]  # a port and a user
            )  # fmt: skip
        except ValueError as error:
            raise self._calls.busy(f"{domain.name()}: {error}") from None

    def _state_names(self) -> dict[int, str]:
        """``VIR_DOMAIN_RUNNING`` is 1, and so on."""
        names = ("NOSTATE", "RUNNING", "BLOCKED", "PAUSED", "SHUTDOWN", "SHUTOFF", "CRASHED", "PMSUSPENDED")
        return {getattr(self._libvirt, f"VIR_DOMAIN_{name}"): name for name in names}

    def _host(self, domain: Any, mark: Mark | None) -> str | None:
        """Where the mark says, else what libvirt finds out: the first address that is not of the machine itself."""
        if mark and mark.reach.host:
            return mark.reach.host
        for source in _SOURCES:
            number = getattr(self._libvirt, f"VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_{source}")
            found = self._calls.ask(domain.interfaceAddresses, number, 0, none_for=_NO_ADDRESSES)
            if addresses := sorted(_addresses(found), key=lambda address: address.version):
                return str(addresses[0])
        return None


def _state(name: str, mark: Mark | None) -> InstanceState:
    if name in _ACTIVE:
        return InstanceState.RUNNING
    return InstanceState.PENDING if mark and not mark.started else InstanceState.STOPPED


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and all(character in "0123456789abcdef-" for character in text.lower())


def _addresses(found: object) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Of what ``interfaceAddresses`` answers, which a guest's agent may have said: what can be used from outside."""
    cards = found.values() if isinstance(found, dict) else ()
    for card in cards:
        for each in (isinstance(card, dict) and card.get("addrs")) or ():
            try:
                address = ipaddress.ip_address(each["addr"])
            except (KeyError, TypeError, ValueError):
                continue
            if not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast):
                yield address
