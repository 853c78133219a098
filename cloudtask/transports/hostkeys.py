"""Whether a host is the one it says it is: known_hosts files, read as sshd(8) describes them ("SSH_KNOWN_HOSTS FILE FORMAT").

A key that is known is accepted, one that is not is accepted once and remembered in a file of our own, one that has changed is
refused whatever StrictHostKeyChecking says.  Lines are looked at one by one and their keys are decoded only where the host matches,
so that files of ten thousands of lines take milliseconds.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cloudtask.errors import HostKeyError, RefusedError
from cloudtask.transports.sshconfig import HostConfig

FAMILIES = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
"""Key type in a known_hosts line -> the host key algorithms that sign with such a key."""


class Entry(NamedTuple):
    """A line that matches the host.  ``marker`` is ``""``, ``@revoked`` or ``@cert-authority``; ``exact`` is False where it was
    found under the name without the port."""

    file: str
    line: int
    marker: str
    kind: str
    key: bytes
    exact: bool = True

    @property
    def place(self) -> str:
        """``file:line``"""
        return f"{self.file}:{self.line}"


class HostKeys:
    """What the known_hosts files say about one host.

    ``ours`` is our own file.  The methods raise RefusedError, HostKeyError for a key that is not the host's, with one line that says
    what to do.
    """

    def __init__(self, config: HostConfig, ours: str) -> None:
        self._config = config
        self._ours = ours
        self._names = lookup_names(config)
        self._files = (*config.user_known_hosts, *config.global_known_hosts)
        self._entries = list(self._read((*self._files, ours)))

    def algorithms(self, supported: Iterable[str]) -> list[str]:
        """The host key algorithms to offer, those of keys that we know first: else a host would look changed that has more keys.

        ``supported`` is what the ssh library can verify, in its order of preference.
        """
        possible = list(supported)
        allowed = [name for name in self._config.algorithms if name in possible] if self._config.algorithms else possible
        known = {name for entry in self.plain() for name in FAMILIES.get(entry.kind, (entry.kind,))}
        ordered = sorted(allowed, key=lambda name: name not in known)
        if not ordered:
            raise RefusedError(f"{self._host}: HostKeyAlgorithms leaves no host key type that can be checked; try --transport=openssh")
        return ordered

    def check(self, kind: str, key: bytes) -> None:
        """Accepts or refuses the host key that was presented.  ``kind`` is its type, ``key`` the blob on the wire."""
        if self.knows(kind, key):
            return
        if self._config.strict == "yes":
            file = (self._config.user_known_hosts or ("your known_hosts file",))[0]
            raise RefusedError(
                f"{self._host}: its {kind} host key is not known and StrictHostKeyChecking is yes: "
                f"add it with `ssh-keyscan {self._scan}` to {file} once you have verified it"
            )
        self.remember(kind, key)

    def settle(self) -> list[str]:
        """The login worked: nothing more to do, and nothing to tell."""
        return []

    def knows(self, kind: str, key: bytes) -> bool:
        """True for a key that is the host's, False where none is known.  Raises for any other."""
        entries = self._entries
        for entry in entries:
            if entry.marker == "@revoked" and entry.key == key:
                raise HostKeyError(f"{self._host}: its {kind} host key is revoked ({entry.place}): do not trust this host")
        if any(entry.key == key for entry in entries if not entry.marker):
            return True
        changed = [entry for entry in entries if not entry.marker and entry.exact]
        if changed:
            raise HostKeyError(self._changed(changed, kind))
        for entry in entries:
            if entry.marker == "@cert-authority":
                raise RefusedError(
                    f"{self._host}: its host key has to be certified by an authority ({entry.place}), "
                    "which this transport cannot check: use --transport=openssh"
                )
        return False

    def _changed(self, entries: list[Entry], kind: str) -> str:
        same = [entry for entry in entries if entry.kind == kind]
        entry = (same or entries)[0]
        what = "has changed" if same else f"is of another type ({kind}) than the one known ({entry.kind})"
        insists = " (StrictHostKeyChecking=no does not change that here)" if self._config.strict == "no" else ""
        return (
            f"{self._host}: HOST KEY {what}, see {entry.place}: someone may be listening in, or the host was made anew{insists}; "
            f"if you know that it was: ssh-keygen -R '{self._names[0]}' -f '{entry.file}'"
        )

    def remember(self, kind: str, key: bytes) -> None:
        """Adds the key to our file, unless another process has done so meanwhile (then its key counts)."""
        try:
            os.makedirs(os.path.dirname(self._ours) or ".", mode=0o700, exist_ok=True)
            descriptor = os.open(self._ours, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "rb+", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                meanwhile = [entry for entry in self._read([self._ours]) if not entry.marker and entry.exact]
                if meanwhile:
                    if all(entry.key != key for entry in meanwhile):
                        raise HostKeyError(self._changed(meanwhile, kind))
                    return
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                line = f"{self._names[0]} {kind} {base64.b64encode(key).decode()}\n"
                file.write(b"\n" * torn + line.encode())
                os.fsync(descriptor)
        except OSError as error:
            raise RefusedError(f"{self._host}: its host key cannot be remembered in {self._ours}: {error.strerror or error}") from error

    def plain(self) -> Iterator[Entry]:
        """The keys that it is known by."""
        return (entry for entry in self._entries if not entry.marker)

    def _read(self, files: Iterable[str]) -> Iterator[Entry]:
        for file in dict.fromkeys(files):
            yield from _matching(file, self._names)

    @property
    def _host(self) -> str:
        return self._names[0]

    @property
    def _scan(self) -> str:
        port = f"-p {self._config.port} " if self._config.port != 22 else ""
        return f"{port}{self._config.host}"


def lookup_names(config: HostConfig) -> tuple[str, ...]:
    """The names under which the host may be known, the exact one first; only that one is written.

    HostKeyAlias stands alone.  A host on a port of its own is ``[host]:port``; like ssh, a key under the bare name is accepted too.
    """
    if config.alias:
        return (config.alias.lower(),)
    host = config.host.lower()
    return (host,) if config.port == 22 else (f"[{host}]:{config.port}", host)


def _matching(file: str, names: tuple[str, ...]) -> Iterator[Entry]:
    """The entries of ``file`` for the host; a file that cannot be read has none.  Lines that make no sense are passed over, as ssh does."""
    try:
        with open(file, "rb") as lines:
            plain = [name.encode("utf-8", "surrogateescape") for name in names]
            for number, line in enumerate(lines, 1):
                fields = line.split(None, 4)
                if len(fields) < 3 or fields[0].startswith(b"#"):
                    continue
                marker = fields.pop(0).decode("ascii", "replace") if fields[0].startswith(b"@") else ""
                position = _first_match(fields[0], plain)
                if position is None or len(fields) < 3:
                    continue
                try:
                    key = base64.b64decode(fields[2], validate=True)
                except binascii.Error:
                    continue
                yield Entry(file, number, marker, fields[1].decode("ascii", "replace"), key, position == 0)
    except OSError:
        return


def _first_match(patterns: bytes, names: list[bytes]) -> int | None:
    """Which of ``names`` the host field of a line matches."""
    if patterns.startswith(b"|1|"):
        return next((position for position, name in enumerate(names) if _hashed_match(patterns, name)), None)
    return next((position for position, name in enumerate(names) if _pattern_match(patterns, name)), None)


def _hashed_match(field: bytes, name: bytes) -> bool:
    """``|1|salt|HMAC-SHA1(salt, name)``, both in base64."""
    try:
        _, _, salt, digest = field.split(b"|")
        return hmac.digest(binascii.a2b_base64(salt), name, "sha1") == binascii.a2b_base64(digest)
    except ValueError:
        return False


def _pattern_match(field: bytes, name: bytes) -> bool:
    """A list of patterns with ``*``, ``?`` and ``!`` (PATTERNS in ssh_config(5)).  One that is negated and matches ends it."""
    if name not in field and b"*" not in field and b"?" not in field and name not in field.lower():
        return False
    found = False
    for pattern in field.lower().split(b","):
        negated = pattern.startswith(b"!")
        if _glob(pattern[negated:], name):
            if negated:
                return False
            found = True
    return found


def _glob(pattern: bytes, name: bytes) -> bool:
    if b"*" not in pattern and b"?" not in pattern:
        return pattern == name
    return re.fullmatch(re.escape(pattern).replace(rb"\*", b".*").replace(rb"\?", b"."), name, re.DOTALL) is not None
