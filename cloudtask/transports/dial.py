"""The byte stream under an ssh connection: TCP, or a ProxyCommand with a socket pair."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

from cloudtask.errors import ConnectError
from cloudtask.transports.program import Complaints


def tcp(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection to ``host``, whose addresses are tried in turn, with TCP_NODELAY and kernel keepalives.

    ``timeout`` is for all of them together, in seconds.  Raises ConnectError.
    """
    deadline = time.monotonic() + timeout
    try:
        found = socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectError(f"{host}: the name cannot be resolved: {getattr(error, 'strerror', None) or error}") from error
    failures = []
    for position, (family, kind, protocol, _, address) in enumerate(found):
        share = (deadline - time.monotonic()) / (len(found) - position)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(share, 0.1))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            sock.close()
            failures.append(f"{address[0]}: {error.strerror or error}")
        else:
            return sock
    raise ConnectError(f"no connection to {host} port {port} ({'; '.join(failures)}): is it up, and does sshd listen there?")


class ProxyProgram:
    """A ProxyCommand: a shell command whose stdin and stdout are the connection.  `close` ends its whole process group."""

    def __init__(self, command: str) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],  # as ssh does it
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        assert self._process.stderr is not None
        self._complaints = Complaints(self._process.stderr)

    def complaints(self) -> bytes:
        """What it wrote to stderr, to the end where that is near."""
        self._complaints.ended(0.5)
        return self._complaints.kept()

    def close(self) -> None:
        """Ends it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._complaints.ended(0.5)


def last_line(text: bytes) -> str:
    """The last line of ``text`` that says something, printable."""
    lines = list(_lines(text))
    return lines[-1] if lines else ""


def _lines(text: bytes) -> Iterator[str]:
    for line in text.decode("utf-8", "replace").splitlines():
        printable = "".join(character for character in line if character.isprintable()).strip()
        if printable:
            yield printable
