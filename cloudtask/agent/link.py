"""One connection of the controller: the stdin and stdout that sshd (or whoever) made for `attach`, handed over by it.

The two may be pipes or one and the same socket.  Reading and writing never block.
"""

import array
import os
import socket
from collections import deque

from . import codec

_READ = 256 * 1024
_BURST = 128 * 1024
ROOM = 192 * 1024
"""Bytes of output that may wait; control frames may always be added."""


class Gone(Exception):
    """The connection has ended."""


class Link:
    """``rank`` is its (epoch, connection) once it has said hello.  ``control`` socket: `attach` waits at its other end."""

    def __init__(self, read_fd: int, write_fd: int, control: "socket.socket") -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.control = control
        self.rank: "tuple[int, int] | None" = None
        self.leave_by = 0.0
        """When it is closed, sent or not, by the monotonic clock; 0: it stays."""
        self.blocked = False
        """The kernel takes no more for now."""
        self.leaving = False
        """Nothing more is read, and it closes when all is sent."""
        self._unpacker = codec.Unpacker()
        self._urgent: "deque[bytes]" = deque()
        self._data: "deque[bytes]" = deque()
        self._data_size = 0
        self._writing = memoryview(b"")
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def read(self) -> "list[tuple[dict[str, object], bytes]]":
        """Frames that have come.  Raises Gone at the end, ProtocolError for garbage."""
        try:
            data = os.read(self.read_fd, _READ)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Gone(str(error))
        if not data:
            raise Gone("the other end closed")
        return self._unpacker.feed(data)

    def check_control(self) -> None:
        """Raises Gone when `attach` has exited."""
        try:
            if self.control.recv(64, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        raise Gone("its other end has gone")

    def tell(self, header: "dict[str, object]", payload: bytes = b"") -> None:
        """Queue a control frame: it overtakes output that waits."""
        self._urgent.append(codec.pack(header, payload))

    def tell_text(self, header: str) -> None:
        """The same, with a header that is JSON already."""
        self._urgent.append(codec.pack_text(header))

    def add(self, frame: bytes) -> None:
        """Queue a frame of output or results."""
        self._data.append(frame)
        self._data_size += len(frame)

    @property
    def room(self) -> bool:
        """True while more output may be queued."""
        return self._data_size + len(self._writing) < ROOM

    @property
    def empty(self) -> bool:
        """True when all is sent."""
        return not (self._writing or self._urgent or self._data)

    def write(self) -> None:
        """Send what can be sent.  Raises Gone."""
        self.blocked = False
        while self._writing or self._next():
            try:
                written = os.write(self.write_fd, self._writing)
            except BlockingIOError:
                self.blocked = True
                return
            except OSError as error:
                raise Gone(str(error))
            self._writing = self._writing[written:]

    def _next(self) -> bool:
        """Put together what is written next: all that is urgent, then output."""
        if not (self._urgent or self._data):
            return False
        parts = list(self._urgent)
        self._urgent.clear()
        size = sum(map(len, parts))
        while self._data and size < _BURST:
            frame = self._data.popleft()
            self._data_size -= len(frame)
            size += len(frame)
            parts.append(frame)
        self._writing = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        return True

    def close(self) -> None:
        """End it.  `attach` exits when its socket is closed, so that sshd ends the channel."""
        for fd in {self.read_fd, self.write_fd}:
            try:
                os.close(fd)
            except OSError:
                pass
        self.control.close()


def receive_descriptors(control: "socket.socket") -> "tuple[int, int] | None":
    """The stdin and stdout that `attach` hands over; None where it went away or sent anything else.  Raises OSError."""
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0) | socket.MSG_DONTWAIT
    _, ancillary, _, _ = control.recvmsg(16, socket.CMSG_SPACE(16), flags)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    if len(fds) == 2:
        return fds[0], fds[1]
    for fd in fds:
        os.close(fd)
    return None
