"""What ssh's own complaints mean: worth another try, or not.

The one place where the words of OpenSSH's messages are matched (sshconnect.c, sshconnect2.c, packet.c of OpenSSH 9.2).
"""

from __future__ import annotations

from cloudtask.errors import ConnectError, HostKeyError, RefusedError, WorkerError
from cloudtask.transports.dial import last_line

_REFUSALS = {
    "Permission denied": "its keys are refused: add a public key to the authorized_keys there, or name one with --ssh-identity",
    "Too many authentication failures": "too many keys were tried: name the right one with --ssh-identity, or set IdentitiesOnly",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "HOST KEY has changed: someone may be listening in, or the host was made anew",
    "REVOKED HOST KEY": "its host key is revoked: do not trust this host",
    "Host key verification failed": "its host key is not known, or cannot be verified",
    "no matching host key type found": "it has no host key of the types that are accepted",
    "Unable to negotiate": "there is no algorithm in common",
    "Bad configuration option": "ssh rejects its configuration",
    "Bad owner or permissions": "ssh rejects its configuration",
    "terminating, ": "ssh rejects its configuration",
}
"""Words of a complaint -> what it means in ours.  The first that is found counts."""

_HOST_KEYS = ("REMOTE HOST IDENTIFICATION HAS CHANGED", "REVOKED HOST KEY")
"""Those that say that the host showed a key which is not its own."""


def verdict(who: str, complaints: bytes) -> WorkerError:
    """The error for an ssh process that ended: RefusedError where another try would end the same, else ConnectError."""
    text = complaints.decode("utf-8", "replace")
    for words, meaning in _REFUSALS.items():
        if words in text:
            kind = HostKeyError if words in _HOST_KEYS else RefusedError
            return kind(f"{who}: {meaning} (ssh: {_telling(text, words)})")
    said = last_line(complaints)
    return ConnectError(f"{who}: no connection" + (f" (ssh: {said})" if said else ""))


def _telling(text: str, words: str) -> str:
    """The line with the file and number of an offending key where there is one, else the last line."""
    offending = [line for line in text.splitlines() if line.startswith("Offending")]
    found = offending or [line for line in text.splitlines() if words in line]
    return last_line(found[-1].encode())
