"""The file of workers: one a line, as ``cloudtask-launch-workers`` writes it and ``--workers=FILE`` reads it.

::

    4/root@host:2222      # a worker as people name it (see `addresses`), and a comment
    root@198.51.100.7 #: provider=ec2 region=us-east-1 id=i-0123 hostkey=ssh-ed25519:AAAA...

Behind ``#:`` stand facts, ``name=value`` each, blanks and what is not ASCII as ``%20``.  Those that say how the worker is reached
become part of its `Address`: ``hostkey`` the only host key that it may show, ``transport`` what reaches it, and ``id`` the name that its
host key goes by (``alias``, where another name is wanted), for an address may be another machine's tomorrow.  An address is saved in
the same form.  A file may come from anywhere: whatever is not exactly this is an error.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote_to_bytes

from cloudtask.addresses import LOCAL, parse_address, str_with_slots
from cloudtask.model import Address

_COMMENT = re.compile(r"(?:^|\s)#")
_MARK = re.compile(r"(?:^|\s)#(:?)")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}", re.ASCII)
_VALUE = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})*", re.ASCII)
_WORD = re.compile(r"[a-z][a-z0-9_-]{0,39}", re.ASCII)
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)
_HOST_KEY = re.compile(r"([a-z0-9@.-]{1,60}):([A-Za-z0-9+/]{16,8000}={0,2})", re.ASCII)
_PLAIN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII)
_SAFE = "!\"$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_LONGEST = 16384
_REACHES = ("hostkey", "transport", "alias")
"""What of the facts makes an address, with ``id``."""


def instance_alias(id: str) -> str:
    """The name that the host key of a provider's machine goes by: ``cloudtask-<id>``, where the id has other characters than
    known_hosts files and ssh take in a name, a digest of it in their place."""
    if _PLAIN_ID.fullmatch(id):
        return f"cloudtask-{id}"
    import hashlib  # it loads OpenSSL, and seldom is an id that long

    digest = hashlib.sha256(id.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"cloudtask-{re.sub(r'[^a-z0-9]+', '-', id.lower())[:60].strip('-')}-{digest}"


@dataclass(frozen=True, kw_only=True)
class WorkerLine:
    """A worker, what its line says about it, and the line as it was read (empty where it was not)."""

    address: Address
    facts: Mapping[str, str]
    line: str = ""

    @classmethod
    def parse(cls, text: str) -> WorkerLine:
        """A line that names a worker.  Raises ValueError saying what is wrong with which part."""
        if len(text) > _LONGEST:
            raise ValueError(f"a line of {len(text)} characters is too long for a worker")
        head, facts = _split(text)
        words = head.split()
        if len(words) != 1:
            raise ValueError(f"{head.strip()!r} is more than one worker; give one a line" if words else "no worker stands before the #:")
        address = parse_address(words[0])
        found = _read_facts(facts or "")
        return cls(address=_reached(address, found), facts=found, line=text)

    def format(self) -> str:
        """The line to write: what the address and the facts say, and no more.  Raises ValueError for what could not be read again."""
        facts = {name: value for name, value in self.facts.items() if name not in _REACHES} | self._reaching()
        for name, value in facts.items():
            _check_fact(name, value)
        word = str_with_slots(self.address)
        if parse_address(word) != replace(self.address, host_key=None, transport=None, alias=None):
            raise ValueError(f"{word!r} is no worker that could be read again")
        told = " ".join(f"{name}={quote(value, safe=_SAFE)}" for name, value in facts.items())
        return f"{word} #: {told}" if told else word

    def _reaching(self) -> dict[str, str]:
        address = self.address
        alias = address.alias if address.alias != _alias_of(self.facts) else None
        found = {"hostkey": (address.host_key or "").replace(" ", ":", 1), "transport": address.transport, "alias": alias}
        return {name: value for name, value in found.items() if value}


def write_address(address: Address) -> str:
    """An address in one line, as `parse_workers` reads it back: for conf.yaml."""
    return WorkerLine(address=address, facts={}).format()


def parse_lines(text: str, name: str) -> list[WorkerLine]:
    """The workers of a file's text; ``name`` is for messages.  Raises ValueError that names file and line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        head, facts = _split(line)
        if not head.strip() and facts is None:
            continue
        try:
            found.append(WorkerLine.parse(line))
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
    return found


def read_worker_file(path: str) -> list[WorkerLine]:
    """The workers of a file.  Raises ValueError, also where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse_lines(file.read(), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None


def parse_workers(value: object, folder: str) -> tuple[Address, ...]:
    """The workers that ``value`` names: text with blanks between them, the name of an existing file, or a list.

    ``folder`` is what a relative file name counts from.  Raises ValueError, also where nothing is named: an empty variable in a
    script must not make its jobs run on the controller.
    """
    if isinstance(value, str):
        addresses = tuple(_read(value, folder))
    elif isinstance(value, (list, tuple)) and all(isinstance(word, (str, Address)) for word in value):
        addresses = tuple(_item(write_address(word) if isinstance(word, Address) else word) for word in value)
    else:
        raise ValueError("must be text or a list of workers")
    if not addresses:
        raise ValueError(f"names no worker; give hosts, or {LOCAL} for this machine")
    return addresses


def _item(word: str) -> Address:
    return WorkerLine.parse(word).address if _split(word)[1] is not None else parse_address(word)


def _read(text: str, folder: str) -> Iterator[Address]:
    path = os.path.join(folder, os.path.expanduser(text.strip()))
    if text.strip() and "\0" not in path and os.path.isfile(path):
        return (line.address for line in read_worker_file(path))
    if text.strip().startswith(("/", "./", "../", "~")):
        raise ValueError(f"no file {path}")
    return (parse_address(word) for word in text.split())


# --- a line's parts --------------------------------------------------------------------------------------------------


def _split(line: str) -> tuple[str, str | None]:
    """What stands before the first ``#``, and the facts without a comment behind them; None where there is no ``#:``."""
    mark = _MARK.search(line)
    if mark is None or not mark[1]:
        return line[: mark.start()] if mark else line, None
    return line[: mark.start()], _COMMENT.split(line[mark.end() :], maxsplit=1)[0]


def _read_facts(text: str) -> dict[str, str]:
    facts: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"{word[:200]!r} behind #: is not name=value")
        if name in facts:
            raise ValueError(f"{name} stands twice behind #:")
        try:
            facts[name] = unquote_to_bytes(value).decode()
        except UnicodeDecodeError:
            raise ValueError(f"{word[:200]!r} behind #: is not text in UTF-8") from None
        _check_fact(name, facts[name])
    return facts


def _check_fact(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a fact")
    if not value or not value.isprintable():
        raise ValueError(f"{name}={value[:200]!r} says nothing, or has characters that cannot be printed")
    if name == "hostkey":
        _host_key(value)
    elif name == "transport" and not _WORD.fullmatch(value):
        raise ValueError(f"transport={value[:60]!r} is no name of a transport")
    elif name == "alias" and not _ALIAS.fullmatch(value):
        raise ValueError(f"alias={value[:60]!r} is no name for a host key")


def _reached(address: Address, facts: Mapping[str, str]) -> Address:
    if address.local and (named := [name for name in (*_REACHES, "id") if name in facts]):
        raise ValueError(f"{LOCAL} is this machine: {named[0]} behind #: means nothing for it")
    return replace(
        address,
        host_key=_host_key(facts["hostkey"]) if "hostkey" in facts else None,
        transport=facts.get("transport"),
        alias=facts.get("alias") or _alias_of(facts),
    )


def _alias_of(facts: Mapping[str, str]) -> str | None:
    return instance_alias(facts["id"]) if "id" in facts else None


def _host_key(text: str) -> str:
    """``ssh-ed25519:AAAA...`` as known_hosts files have it; the key must begin with its type (RFC 4253, 6.6)."""
    match = _HOST_KEY.fullmatch(text)
    try:
        blob = base64.b64decode(match[2], validate=True) if match else b""
    except ValueError:
        blob = b""
    kind = match[1].encode() if match else b""
    if match is None or not blob.startswith(len(kind).to_bytes(4, "big") + kind):
        raise ValueError(f"hostkey={text[:60]!r} is no host key (ssh-ed25519:AAAA...)")
    return f"{match[1]} {match[2]}"
