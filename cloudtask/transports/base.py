"""What a transport is: how bytes reach a worker.

Three small protocols, in the order in which they are used: a `Transport` makes a `Connection` to one address, a connection opens
`Channel` objects, and a channel is a duplex byte pipe to one program started there.  A stranger's transport is a class with these
methods, found by name through the entry point group ``cloudtask.transports`` (see `cloudtask.transports.find`).

None of the objects may cross a fork: connect in the process that uses the connection.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cloudtask.model import Address

COMPLAINTS_KEPT = 64 * 1024
"""Bytes of a program's stderr that a channel remembers: the newest ones."""


def default_known_hosts() -> str:
    """The path of our own known_hosts file, with XDG_CONFIG_HOME honoured."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "cloudtask", "known_hosts")


@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """What a transport may need to know beside the address.  Paths are the controller's, times are in seconds.

    ``user`` is --user where it was set; ``identity`` is --ssh-identity; ``ssh_config`` is --ssh-config; ``session_key`` is the
    path of the session's temporary private key, tried first where the file exists; ``timeout`` limits one whole `connect`;
    ``heartbeat`` is how often an idle connection says something; ``known_hosts`` is our own file of accepted host keys;
    ``directory`` is the working directory of programs of the local transport (None: the present one).
    """

    user: str | None = None
    identity: str | None = None
    ssh_config: str | None = None
    session_key: str | None = None
    timeout: float = 30.0
    heartbeat: float = 15.0
    known_hosts: str = field(default_factory=default_known_hosts)
    directory: str | None = None


class Channel(Protocol):
    """A duplex byte pipe to a program on the worker.  Nothing here blocks, and one thread at a time may use it."""

    def fileno(self) -> int:
        """A descriptor for select(): readable when `recv` has data, end of file or an error to give.

        It may also become readable without cause (`recv` then raises BlockingIOError), and does so once there is room again
        after a `send` that took less than it was given.  Selecting it for writing as well is harmless, and needed where the
        descriptor is a socket: wait for both while something is unsent.  Invalid after `close`.
        """

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes of the program's stdout.  Raises BlockingIOError when there are none yet; ``b""`` is the end."""

    def send(self, data: bytes | memoryview) -> int:
        """Hands over the beginning of ``data`` for the program's stdin; returns how many bytes were taken, 0 when none could be.

        Raises OSError or EOFError when the program or the connection is gone.
        """

    def shutdown_write(self) -> None:
        """The program's stdin ends after what was sent.  Silent where the program is gone."""

    def complaints(self) -> bytes:
        """What the program's stderr said so far: the newest 64 KiB.  It is always drained, so that it never blocks the program."""

    def exit_status(self) -> int | None:
        """The exit status once it is known, 128+signal where the program was killed.  None for ever where contact was lost."""

    def close(self) -> None:
        """Lets go of the channel.  A program that still runs is not killed: it meets the end of stdin and a broken pipe.  Idempotent."""


class Connection(Protocol):
    """A way to one worker, as one user."""

    login: str
    """``user@host:port`` as really used, for messages."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the logs on how contact was made, such as a host key that was taken on trust; mostly none."""

    def open(self, command: str) -> Channel:
        """Starts ``command`` as the login shell's command line (surrogate escapes stand for raw bytes).

        Five at once are safe with a stock sshd.  Blocks for a round trip; raises ConnectError when the connection is gone or
        the worker does not answer, RefusedError when it answers that it will not.
        """

    def alive(self) -> bool:
        """False once the connection is known to be gone.  True proves nothing: a silent one is found out by asking for a sign of life."""

    def close(self) -> None:
        """Ends the connection with all its channels.  Never hangs.  Idempotent."""


class Transport(Protocol):
    """A kind of way to workers.  Made without arguments."""

    def connect(self, address: Address, options: ConnectOptions) -> Connection:
        """Makes contact and logs in; blocks up to ``options.timeout`` seconds.

        Raises ConnectError where another try may succeed, RefusedError where it would end the same: one clear line each.
        HostKeyError, which is one, where the host shows another key than it must have.
        """
