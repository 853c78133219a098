"""What EC2 says about its instances, as `Instance`: ids, states, addresses, why one is taken away, and the keys on its console."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from cloudtask.printable import sanitize
from cloudtask.providers.base import TAG, Instance, InstanceState, Tags

USER = "root"
"""Whom user data lets in, on any image with cloud-init."""

STATES = {
    "pending": InstanceState.PENDING,
    "running": InstanceState.RUNNING,
    "shutting-down": InstanceState.LEAVING,
    "terminated": InstanceState.GONE,
    "stopping": InstanceState.STOPPED,
    "stopped": InstanceState.STOPPED,
}
EXISTING = [name for name, state in STATES.items() if state is not InstanceState.GONE]

RECLAIMS = {"Server.SpotInstanceTermination", "Server.SpotInstanceShutdown", "Server.ScheduledStop"}
"""Codes of StateReason for a machine that Amazon took back."""

_ID = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)
_WHOLE = re.compile(r"(?P<instance>i-[0-9a-f]{8,17})(?:\.(?P<region>[a-z0-9-]{1,40})(?:\.(?P<account>[0-9]{12}))?)?", re.ASCII)
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)
_REQUEST = re.compile(r"sir-[0-9a-z]{8,20}", re.ASCII)
_BLOCK = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_KEY = re.compile(r"\b((?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]{16,2000}={0,3})(?=\s|$)", re.ASCII)


class Ec2Id(NamedTuple):
    """An instance's id with all that it takes to find it: ``i-0123456789abcdef0.us-east-1.123456789012``.

    Asked in another region or with another account's credentials EC2 says that there is no such instance, and that would be taken
    for its end.  An id without them is of the region in the settings.
    """

    instance: str
    region: str
    account: str = ""

    @classmethod
    def parse(cls, text: str, region: str) -> Self | None:
        """None where it is no id of EC2's."""
        match = _WHOLE.fullmatch(text)
        return cls(match["instance"], match["region"] or region, match["account"] or "") if match else None

    def __str__(self) -> str:
        return ".".join(filter(None, self))


def instances_of(reservation: Mapping[str, Any], region: str) -> Iterator[tuple[Instance, str]]:
    """The instances of a reservation as EC2 answers it, each with its spot request's id or "".  Raises ValueError for what is none."""
    owner, items = reservation.get("OwnerId"), reservation.get("Instances")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("a reservation without instances")
    for item in items:
        yield read_instance(item, region, owner if isinstance(owner, str) and _ACCOUNT.fullmatch(owner) else "")


def read_instance(found: Mapping[str, Any], region: str, account: str) -> tuple[Instance, str]:
    """One of them.  Raises ValueError."""
    name = _text(found, "InstanceId")
    state = STATES.get(_text(_mapping(found, "State"), "Name"))
    if not _ID.fullmatch(name) or state is None:
        raise ValueError(f"not an instance: {name!r}")
    reason, launched = _mapping(found, "StateReason"), found.get("LaunchTime")
    code, message = _text(reason, "Code"), sanitize(_text(reason, "Message"))[:200]
    request = _text(found, "SpotInstanceRequestId")
    instance = Instance(
        id=str(Ec2Id(name, region, account)),
        state=state,
        host=_text(found, "PublicIpAddress") or _text(found, "PrivateIpAddress") or None,
        user=USER,
        tags=Tags.from_dict(tags_of(found)),
        region=region,
        size=_text(found, "InstanceType")[:40],
        created=launched.timestamp() if isinstance(launched, datetime.datetime) else 0.0,
        reclaimed=(message or code) if code in RECLAIMS else "",
        note=message,
    )
    return instance, request if _REQUEST.fullmatch(request) else ""


def tags_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Its tags by key."""
    items = found.get("Tags")
    pairs = [(_text(item, "Key"), _text(item, "Value")) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return dict(pairs)


def session_tags(session: str) -> Tags:
    """For a machine that has the tag of ``session``, and whose other tags somebody took away: it is the session's all the same."""
    return Tags(session=session, controller="unknown", token="unknown", expires=0)


def interruption(request: Mapping[str, Any]) -> tuple[str, str]:
    """A spot request's id and why its instance is taken away, "" where it is not.

    A request says ``instance-terminated-no-capacity`` for two minutes while the instance still runs, or is marked beforehand (EC2
    User Guide, Spot request status).
    """
    status = _mapping(request, "Status")
    code = _text(status, "Code")
    taken = code.startswith(("marked-for-", "instance-terminated-", "instance-stopped-")) and not code.endswith("-by-user")
    return _text(request, "SpotInstanceRequestId"), sanitize(f"spot: {code}")[:100] if taken else ""


def console_keys(output: str) -> list[str]:
    """The host keys that cloud-init last showed on a console."""
    blocks = _BLOCK.findall(output)
    return list(dict.fromkeys(_KEY.findall(blocks[-1]))) if blocks else []


def is_ours(found: Mapping[str, Any], session: str) -> bool:
    """It has the tag of this very session."""
    return tags_of(found).get(TAG) == session


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""


def _mapping(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}
