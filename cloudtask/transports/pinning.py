"""The host key of a machine that somebody else may have had the address of: it goes by a name of its own, not by its address.

Either the key is known from the start (`HostConfig.host_key`: cloudtask made it, or the provider vouches for it), and only that one is
accepted, wherever else it may stand or not.  Or it is not: then the key shown when the first login works is remembered in our own file
under the machine's alias, for ever, and the log is told that nobody has verified it.  A key is not remembered sooner, because an image may
show the key that it came with until its first boot is over, which nobody can log in to yet.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from cloudtask.errors import HostKeyError, RefusedError
from cloudtask.transports.hostkeys import FAMILIES, HostKeys
from cloudtask.transports.sshconfig import HostConfig


class PublicKey(NamedTuple):
    """``kind`` is its type (``ssh-ed25519``), ``blob`` the key as it is on the wire."""

    kind: str
    blob: bytes

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms that sign with it."""
        return FAMILIES.get(self.kind, (self.kind,))

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"


def parse_key(text: str) -> PublicKey:
    """``ssh-ed25519 AAAA...``, a comment may follow.  Raises ValueError."""
    kind, encoded = text.split()[:2]
    blob = base64.b64decode(encoded, validate=True)
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise ValueError("another type inside")
    return PublicKey(kind, blob)


class PinnedKey:
    """The one host key of the machine that ``config`` is pinned to.  The methods raise HostKeyError or RefusedError, one line each."""

    def __init__(self, config: HostConfig, ours: str) -> None:
        self._config = config
        self._known = HostKeys(config, ours)
        self._shown: PublicKey | None = None
        self._given = _given(config)

    def accepted(self) -> list[PublicKey]:
        """The keys that are accepted; none where it is any, for once."""
        return [self._given] if self._given else [PublicKey(entry.kind, entry.key) for entry in self._known.plain()]

    def algorithms(self, supported: Iterable[str]) -> list[str]:
        """The host key algorithms to offer: those of the keys that are accepted, and no others."""
        names = {name for key in self.accepted() for name in key.algorithms}
        found = [name for name in self._known.algorithms(supported) if not names or name in names]
        if not found:
            raise RefusedError(f"{self._config.login}: its host key is of a type that cannot be checked; try --transport=openssh")
        return found

    def check(self, kind: str, key: bytes) -> None:
        """Accepts or refuses the key that was shown."""
        shown = PublicKey(kind, key)
        if self._given and shown != self._given:
            raise self.mismatch(shown.fingerprint)
        if not self._given:
            self._known.knows(kind, key)
        self._shown = shown

    def settle(self) -> list[str]:
        """The login worked with the key that was checked: it is this machine's for ever.  Returns lines for the log."""
        shown = self._shown
        if self._given or shown is None:
            return []
        if not self._known.knows(*shown):
            self._known.remember(*shown)
        return [f"host key {shown.fingerprint} taken on trust (not verified): pinned to this machine"]

    def mismatch(self, shown: str = "") -> HostKeyError:
        """The error for another key; ``shown`` says which."""
        wanted = " or ".join(key.fingerprint for key in self.accepted())
        other = f"another host key ({shown})" if shown else "another host key"
        return HostKeyError(
            f"{self._config.login}: it shows {other} than the one of this machine ({wanted}): "
            "another machine answers there, or it has not taken its key yet"
        )


def _given(config: HostConfig) -> PublicKey | None:
    if config.host_key is None:
        return None
    try:
        return parse_key(config.host_key)
    except ValueError as error:
        raise RefusedError(f"{config.login}: {config.host_key[:60]!r} is no host key (ssh-ed25519 AAAA...)") from error
