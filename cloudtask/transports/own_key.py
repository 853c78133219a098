"""The user's own public key: what is authorised on machines that are launched for him, so that his later logins get in.

It is the first key that a login would offer (see `identities`), so whoever gets in here gets in later.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Iterable

from cloudtask.errors import UsageError
from cloudtask.model import Address
from cloudtask.transports.base import ConnectOptions
from cloudtask.transports.identities import Identities
from cloudtask.transports.sshconfig import HostConfig, expand, resolve

_ANY_HOST = "cloudtask-launched"
"""The host that the ssh configuration is asked about: the machine's address is not known yet."""
_CERTIFICATE = "-cert-v01@"


def own_public_key(options: ConnectOptions, *, by_ssh: bool = False) -> str:
    """The key line ``ssh-ed25519 AAAA...``.

    ``by_ssh``: the system's ssh will log in, which can use key files that we cannot read (hardware keys, passphrases that it asks for).
    Raises UsageError where there is no key, saying what was passed over; RefusedError for an ssh configuration that cannot be used.
    """
    config = resolve(Address(host=_ANY_HOST), options.user, options.ssh_config)
    if options.identity:
        # The one that was named, and no other that happens to be there.
        config = dataclasses.replace(config, identities=(), identities_only=True)
    identities = Identities(config, options)
    try:
        blobs = (key.asbytes() for _, key in identities)
        found = next((line for blob in blobs if (line := _line(blob))), None)
    finally:
        identities.close()
    if found is None and by_ssh:
        found = _beside(config, options)
    if found is None:
        raise UsageError(_nothing(options, identities))
    return found


def _beside(config: HostConfig, options: ConnectOptions) -> str | None:
    """The public half that stands beside a private key."""
    for path in (options.identity, *config.identities):
        try:
            with open(f"{expand(path, {})}.pub" if path else "", "rb") as file:
                if line := _line(base64.b64decode(file.readline(64 * 1024).split()[1], validate=True)):
                    return line
        except (OSError, IndexError, binascii.Error):
            continue
    return None


def _line(blob: bytes) -> str | None:
    """A key as it stands in authorized_keys; None for a certificate, which stands in none.  A blob begins with its type (RFC 4253, 6.6)."""
    length = int.from_bytes(blob[:4], "big")
    kind = blob[4 : 4 + length].decode("ascii", "replace")
    if not kind.isprintable() or _CERTIFICATE in kind or len(blob) <= 4 + length:
        return None
    return f"{kind} {base64.b64encode(blob).decode()}"


def _nothing(options: ConnectOptions, identities: Identities) -> str:
    locked = [f"{path} has a passphrase: ssh-add {path}" for path in identities.locked]
    passed_over = "; ".join([*_first(identities.notes), *locked])
    if options.identity:
        return f"--ssh-identity={options.identity}: no key to authorise on the machines ({passed_over or 'it is not a private key'})"
    way_out = "make one with ssh-keygen, load one into ssh-agent, or name one with --ssh-identity"
    return f"no ssh key of yours to authorise on the machines{f' ({passed_over})' if passed_over else ''}: {way_out}"


def _first(notes: Iterable[str]) -> list[str]:
    return list(notes)[:3]
