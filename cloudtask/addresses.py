"""Workers as people name them: ``4/user@host:2222 host2 [::1]:22 local``.

A worker is ``[SLOTS/][USER@]HOST[:PORT]``; ``local`` is this machine, without ssh.  More than one colon without brackets is an IPv6
address without a port.  The same host twice is two workers.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable

from cloudtask.model import Address

LOCAL = "local"
_SLOTS = re.compile(r"([^/@\[\]]*)/(.*)", re.DOTALL)
# What ssh itself refuses or a command line could mistake; see CVE-2023-51385 for what shell text in a name can do.
_USER = re.compile(r"[^\s\x00-\x1f\x7f'\"`$\\;&<>|(){}@:/-][^\s\x00-\x1f\x7f'\"`$;&<>|(){}:/]*")
_HOST = re.compile(r"[^\W_][\w.-]*\.?|_[\w.-]+", re.UNICODE)


def parse_addresses(value: object, folder: str) -> tuple[Address, ...]:
    """The workers that ``value`` names: text with blanks between them, the name of an existing file, or a list.

    ``folder`` is what a relative file name counts from.  Raises ValueError, also where nothing is named: an empty variable in a
    script must not make its jobs run on the controller.
    """
    if isinstance(value, str):
        words = _read(value, folder)
    elif isinstance(value, (list, tuple)) and all(isinstance(word, (str, Address)) for word in value):
        words = [str_with_slots(word) if isinstance(word, Address) else word for word in value]
    else:
        raise ValueError("must be text or a list of workers")
    addresses = tuple(parse_address(word) for word in words)
    if not addresses:
        raise ValueError(f"names no worker; give hosts, or {LOCAL} for this machine")
    return addresses


def _read(text: str, folder: str) -> list[str]:
    path = os.path.join(folder, os.path.expanduser(text.strip()))
    if text.strip() and "\0" not in path and os.path.isfile(path):
        return list(_file_words(path))
    if text.strip().startswith(("/", "./", "../", "~")):
        raise ValueError(f"no file {path}")
    return text.split()


def _file_words(path: str) -> Iterable[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split()
        if len(words) > 1:
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is more than one worker; give one a line")
        try:
            yield from (str_with_slots(parse_address(word)) for word in words)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


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
