"""The socket that paramiko gets: one whose `send` never blocks.

paramiko writes from whichever thread has something to say and waits there until the kernel takes it, which with a peer that has
stopped reading is for ever.  `Stream` keeps what the kernel does not take, and the thread that reads (paramiko has one for each
transport) writes it when it can.  Three more things follow from owning the socket:

* reads are taken ahead in large pieces, where paramiko asks for 16 bytes and then for the rest of each packet;
* `close` wakes the reader at once, whatever its timeout is, so that timeouts may be long and idle connections cost nothing
  (paramiko's own 0.1 s poll takes 0.2 % of a core for each);
* descriptors are given back only when nobody waits on them.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable

READ_AHEAD = 128 * 1024
"""Bytes asked from the kernel at a time."""


class Stream:
    """A connected stream socket with the methods that paramiko calls.  One reader; any number of writers.

    ``on_room`` is called in the reader's thread each time that all unsent bytes are gone.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.on_room: Callable[[], None] = _nothing
        self._timeout: float | None = None
        self._ahead = memoryview(b"")
        self._lock = threading.Lock()
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._closed = False
        self._reading = False
        self._disposed = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        self._poll = select.poll()
        self._poll.register(self._wake_reader, select.POLLIN)
        self._poll.register(sock, select.POLLIN)

    @property
    def unsent(self) -> int:
        """How many bytes wait for the kernel to take them."""
        return self._unsent_bytes

    def settimeout(self, timeout: float | None) -> None:
        """How long `recv` waits before it raises TimeoutError, in seconds."""
        self._timeout = timeout

    def send(self, data: bytes) -> int:
        """Takes all of ``data``, always.  Raises OSError or EOFError when the connection is gone."""
        with self._lock:
            if self._closed:
                raise EOFError("closed")
            sent = 0 if self._unsent else self._push(data)
            if sent < len(data):
                self._unsent.append(memoryview(data)[sent:])
                self._unsent_bytes += len(data) - sent
                self._wake()
        return len(data)

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes, ``b""`` at the end.  Raises TimeoutError, OSError, or EOFError once closed."""
        if not self._ahead:
            self._ahead = memoryview(self._receive())
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return bytes(data)

    def close(self) -> None:
        """Ends the connection both ways and wakes the reader.  Idempotent, from any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if self._reading:
                self._wake()
            self._dispose_if_closed()

    def fileno(self) -> int:
        """The socket's descriptor, for asking the kernel about it."""
        return self._socket.fileno()

    def getpeername(self) -> object:
        """The peer's address, as `socket.socket.getpeername` gives it."""
        return self._socket.getpeername()

    def _receive(self) -> bytes:
        with self._lock:
            if self._closed:
                raise EOFError("closed")
            self._reading = True
        try:
            return self._wait_and_read()
        finally:
            with self._lock:
                self._reading = False
                self._dispose_if_closed()

    def _wait_and_read(self) -> bytes:
        while not self._closed:
            with contextlib.suppress(BlockingIOError):
                return self._socket.recv(READ_AHEAD)
            timeout = None if self._timeout is None else self._timeout * 1000
            ready = dict(self._poll.poll(timeout))
            if not ready:
                raise TimeoutError("timed out")
            if self._wake_reader in ready:
                os.read(self._wake_reader, 4096)
            if self._write_unsent():
                self.on_room()
        raise EOFError("closed")

    def _write_unsent(self) -> bool:
        """Writes what the kernel takes; True when that was the last of it."""
        with self._lock:
            waiting = bool(self._unsent)
            while self._unsent and not self._closed:
                piece = self._unsent.popleft()
                sent = self._push(piece)
                self._unsent_bytes -= sent
                if sent < len(piece):
                    self._unsent.appendleft(piece[sent:])
                    break
            if not self._closed:
                self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            return waiting and not self._unsent

    def _push(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b".")

    def _dispose_if_closed(self) -> None:
        """Gives the descriptors back once nobody waits on them."""
        if self._closed and not self._reading and not self._disposed:
            self._disposed = True
            self._socket.close()
            os.close(self._wake_reader)
            os.close(self._wake_writer)


def _nothing() -> None:
    pass
