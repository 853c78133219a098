"""The half of a channel that is our end of a socket pair: bytes to and from a program, nothing of which blocks."""

from __future__ import annotations

import contextlib
import socket


class SocketEnd:
    """What `Channel` says of bytes, on a socket that does not block."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours

    def fileno(self) -> int:
        """See `Channel`.  It is the socket: select it for writing too while something is unsent."""
        return self._socket.fileno()

    def recv(self, size: int) -> bytes:
        """See `Channel`."""
        try:
            return self._socket.recv(size)
        except ConnectionResetError:
            return b""  # the program left without having read all of its stdin

    def send(self, data: bytes | memoryview) -> int:
        """See `Channel`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def shutdown_write(self) -> None:
        """See `Channel`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
