"""One end of the pipe between the main process and a supervisor: messages out and in, never blocking.

A pipe for each supervisor instead of a queue with locks: a process killed at any point harms nobody else's pipe, and the
kernel tells at once that the other end has gone.
"""

from __future__ import annotations

import pickle
import select
import socket
import struct
from collections.abc import Iterable

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 20


class Mailbox:
    """Pickled messages over a stream socket, each behind its length in four bytes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    @property
    def backlog(self) -> int:
        """How many bytes wait for the other side to read."""
        return len(self._outgoing)

    def post(self, messages: Iterable[object]) -> None:
        """Queue the messages and send what the pipe takes now."""
        for message in messages:
            data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
            self._outgoing += _LENGTH.pack(len(data))
            self._outgoing += data
        self.flush()

    def flush(self) -> bool:
        """Send what the pipe takes; True when nothing is left.  A closed pipe swallows everything: reading tells of it."""
        if self.closed:
            self._outgoing.clear()
        while self._outgoing:
            try:
                sent = self._socket.send(memoryview(self._outgoing)[:_CHUNK])
            except BlockingIOError:
                return False
            except OSError:
                self._outgoing.clear()
                return True
            del self._outgoing[:sent]
        return True

    def drain(self, deadline_seconds: float) -> bool:
        """Block until all is sent, at most so long."""
        while not self.flush():
            if not select.select([], [self._socket], [], deadline_seconds)[1]:
                return False
        return True

    def receive(self) -> list[object]:
        """Every whole message that has arrived.  Sets ``closed`` when the other end has gone and all was read."""
        self._fill()
        messages: list[object] = []
        position, size = 0, len(self._incoming)
        view = memoryview(self._incoming)
        try:
            while size - position >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, position)
                end = position + _LENGTH.size + length
                if end > size:
                    break
                messages.append(pickle.loads(view[position + _LENGTH.size : end]))
                position = end
        finally:
            view.release()
        del self._incoming[:position]
        return messages

    def _fill(self) -> None:
        # A bounded number of reads, so that one busy worker cannot keep the loop from the others.
        for _ in range(8):
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return
            self._incoming += data

    def close(self) -> None:
        """Close this end; the other one reads an end of file."""
        self.closed = True
        self._socket.close()
