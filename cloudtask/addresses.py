"""Workers as people name them: ``4/user@host:2222 host2 [::1]:22 local``.

A worker is ``[SLOTS/][USER@]HOST[:PORT]``; ``local`` is this machine, without ssh.  More than one colon without brackets is an IPv6
address without a port.  The same host twice is two workers.  A file of them is `worker_file`'s.
"""

from __future__ import annotations

import ipaddress
import re

from cloudtask.model import Address

LOCAL = "local"
_SLOTS = re.compile(r"([^/@\[\]]*)/(.*)", re.DOTALL)
# What ssh itself refuses or a command line could mistake; see CVE-2023-51385 for what shell text in a name can do.
_USER = re.compile(r"[^\s\x00-\x1f\x7f'\"`$\\;&<>|(){}@:/-][^\s\x00-\x1f\x7f'\"`$;&<>|(){}:/]*")
_HOST = re.compile(r"[^\W_][\w.-]*\.?|_[\w.-]+", re.UNICODE)


def parse_address(word: str) -> Address:
    """One worker.  Raises ValueError saying what is wrong with which part."""
    slots_text, rest = match.groups() if (match := _SLOTS.fullmatch(word)) else (None, word)
    slots = None if slots_text is None else _slots(slots_text, word)
    if rest == LOCAL:
        return Address(host=LOCAL, slots=slots, local=True)
    user, at, host_and_port = rest.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise ValueError(f"{word!r}: {user!r} is no name of a user")
    host, port = _split_port(host_and_port, word)
    return Address(host=host, user=user or None, port=port, slots=slots)


def str_with_slots(address: Address) -> str:
    """The address as :func:`parse_address` reads it, slots included."""
    return f"{address.slots}/{address}" if address.slots is not None else str(address)


def _slots(text: str, word: str) -> int:
    slots = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0
    if slots < 1:
        raise ValueError(f"{word!r}: {text!r} is no number of slots; before the / stands a whole number from 1, as in 4/host")
    return slots


def _split_port(text: str, word: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{word!r}: brackets hold an IPv6 address, as in [::1]:22")
        return _ipv6(host, word), _port(port[1:], word) if port else None
    if text.count(":") > 1:
        return _ipv6(text, word), None
    host, colon, port = text.partition(":")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{word!r}: {host!r} is no name of a host")
    return host, _port(port, word) if colon else None


def _ipv6(text: str, word: str) -> str:
    try:
        zone = ipaddress.IPv6Address(text).scope_id
    except ValueError:
        zone = "?"
    if zone is not None and not re.fullmatch(r"[\w.-]+", zone):
        raise ValueError(f"{word!r}: {text!r} is no IPv6 address")
    return text


def _port(text: str, word: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not 1 <= port <= 65535:
        raise ValueError(f"{word!r}: {text!r} is no port (1 to 65535)")
    return port
