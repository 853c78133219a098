"""libcloud's nodes as instances: state, address, time.  What a cloud answers is not trusted; what makes no sense is left out."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from typing import Any

from cloudtask.providers.base import Instance, InstanceState, Tags

STATES = {
    "running": InstanceState.RUNNING,
    "normal": InstanceState.RUNNING,
    "rebooting": InstanceState.RUNNING,
    "stopping": InstanceState.STOPPED,
    "stopped": InstanceState.STOPPED,
    "suspended": InstanceState.STOPPED,
    "paused": InstanceState.STOPPED,
    "error": InstanceState.STOPPED,
    "terminated": InstanceState.LEAVING,
}
"""By libcloud's NodeState; all others are on their way to something.  ``terminated`` means switched off with some drivers, destroyed
with others: what a cloud lists still is not gone."""


def state_of(node: Any) -> InstanceState:
    """Where a node stands."""
    return STATES.get(str(node.state), InstanceState.PENDING)


def created_of(node: Any) -> float:
    """Seconds since 1970, 0 where unknown.  A time without a zone is UTC."""
    made = node.created_at
    if not isinstance(made, datetime.datetime):
        return 0.0
    return max(0.0, (made if made.tzinfo else made.replace(tzinfo=datetime.UTC)).timestamp())


def host_of(public: Iterable[object], private: Iterable[object]) -> str | None:
    """The address to connect to: a public one of IPv4, else a private one of IPv4, else one of IPv6; None where there is none yet."""
    found = [each for each in (*map(_address, public), *map(_address, private)) if each and _useful(each)]
    return next((str(each) for each in sorted(found, key=lambda each: each.version)), None)


def _address(text: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(str(text))
    except ValueError:
        return None


def _useful(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not (address.is_link_local or address.is_multicast or address.is_unspecified)


def instance_of(
    node: Any, *, state: InstanceState, host: str | None, tags: Tags | None, region: object, size: object, note: str
) -> Instance:
    """The record.  Raises ValueError where the id is none."""
    return Instance(
        id=str(node.id),
        state=state,
        host=host,
        tags=tags,
        region=str(region or ""),
        size=str(getattr(size, "id", size) or ""),
        created=created_of(node),
        note=note,
    )


def missing(id: str, certain: bool) -> Instance:
    """What no list has: nobody knows it, or (not ``certain``) nobody was asked for it yet, so that it counts as there."""
    if certain:
        return Instance(id=id, state=InstanceState.ABSENT)
    return Instance(id=id, state=InstanceState.PENDING, note="not listed, and not asked for yet")
