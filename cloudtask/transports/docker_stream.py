"""A program's stream from the Docker engine, taken apart: a thread moves bytes between the engine's connection and a socket pair.

stdout and stderr come over one connection, in frames with a header of eight bytes (Docker Engine API, "Attach to a container", "Stream
format"): the stream's number, three zeros, the length.  A reader that wants stdout only, and select() to say when there is some, can have
neither from that connection, TLS or not; the socket pair has both, and holds the program back when nobody reads.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from cloudtask.transports.base import COMPLAINTS_KEPT
from cloudtask.transports.docker_wire import Wire

_HEADER = struct.Struct(">BxxxI")
_STDOUT = 1
_STREAMS = (0, 1, 2, 3)
"""stdin (never sent), stdout, stderr, and errors of the engine itself (moby, pkg/stdcopy)."""
_CHUNK = 1 << 17
_GONE = select.POLLHUP | select.POLLERR


class Garbled(Exception):
    """What comes is not a stream of frames."""


class Frames:
    """Finds the frames in what comes, in pieces of any size."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """``(stream, piece)`` for each piece of a frame in ``data``.  Raises Garbled."""
        view = memoryview(data)
        while view:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                yield self._stream, piece
            else:
                view = self._read_header(view)

    def _read_header(self, view: memoryview) -> memoryview:
        missing = _HEADER.size - len(self._header)
        self._header += view[:missing]
        if len(self._header) == _HEADER.size:
            self._stream, self._left = _HEADER.unpack(self._header)
            if self._stream not in _STREAMS:
                raise Garbled
            self._header.clear()
        return view[missing:]


class Pump:
    """Moves bytes in a thread of its own, from `start` until the program's output or its reader ends.

    ``theirs`` is the pair's other end: what is written there goes to stdin, and what it reads is stdout.  ``ended`` is called in
    the thread when the engine has nothing more to say, after the last byte was handed over.
    """

    def __init__(self, wire: Wire, ahead: bytes, ended: Callable[[], None]) -> None:
        self.theirs, self._inner = socket.socketpair()
        self.theirs.setblocking(False)
        self._inner.setblocking(False)
        self._engine = wire
        self._ahead = ahead
        self._ended = ended
        self._frames = Frames()
        self._to_reader: list[memoryview] = []
        self._to_program = memoryview(b"")
        self._stdin_open = True
        self._over = False
        """The engine has nothing more to say."""
        self._complaints = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="docker-stream", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def complaints(self) -> bytes:
        """The newest 64 KiB of stderr."""
        with self._lock:
            return bytes(self._complaints)

    def finish(self, timeout: float) -> None:
        """After ``theirs`` was closed: waits until the engine's connection is closed as well, ``timeout`` seconds at most."""
        self._thread.join(timeout)

    # --- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._move_all():
                with contextlib.suppress(OSError):
                    self._inner.shutdown(socket.SHUT_WR)
                self._ended()
        finally:
            self._inner.close()
            self._engine.close()

    def _move_all(self) -> bool:
        """True at the end of the engine's stream, False where the reader has let go."""
        self._sort(self._ahead)
        while self._to_reader or not self._over:
            ready = self._wait()
            inner, engine = ready.get(self._inner.fileno(), 0), ready.get(self._engine.fileno(), 0)
            if inner & select.POLLIN:
                self._take_from_reader()
            if self._to_program or engine & select.POLLOUT:
                self._give_to_program()
            if engine and not self._to_reader:
                self._take_from_engine()
            if inner & _GONE or not self._give_to_reader():
                return False
        return True

    def _wait(self) -> dict[int, int]:
        """Which descriptor is ready for what.  What nothing is wanted of is not asked: poll would tell of its hangup for ever."""
        poll = select.poll()
        wanted = (select.POLLOUT if self._to_reader else 0) | (select.POLLIN if self._stdin_open and not self._to_program else 0)
        poll.register(self._inner, wanted)
        reading, writing = not self._to_reader, bool(self._to_program) or self._engine.unsent()
        if reading or writing:
            poll.register(self._engine, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
        if reading and self._engine.waiting():
            return dict(poll.poll(0)) | {self._engine.fileno(): select.POLLIN}
        return dict(poll.poll())

    def _take_from_reader(self) -> None:
        """What the reader has written, for stdin."""
        try:
            data = self._inner.recv(_CHUNK)
        except OSError:
            return
        self._to_program = memoryview(data)
        if not data:
            self._stdin_open = False
            self._engine.end_sending()

    def _give_to_program(self) -> None:
        try:
            self._engine.flush()
            sent = self._engine.send(self._to_program) if self._to_program else 0
        except OSError:
            # The program or the engine is gone; reading tells which.
            self._stdin_open = False
            sent = len(self._to_program)
        self._to_program = self._to_program[sent:]

    def _take_from_engine(self) -> None:
        try:
            data = self._engine.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # the connection broke
        self._over = not data
        self._sort(data)

    def _sort(self, data: bytes) -> None:
        try:
            for stream, piece in self._frames.feed(data):
                if stream == _STDOUT:
                    self._to_reader.append(piece)
                else:
                    self._complain(piece)
        except Garbled:
            self._complain(b"cloudtask: the Docker engine's stream is garbled\n")
            self._over = True

    def _complain(self, piece: bytes | memoryview) -> None:
        with self._lock:
            self._complaints += piece[-COMPLAINTS_KEPT:]
            del self._complaints[:-COMPLAINTS_KEPT]

    def _give_to_reader(self) -> bool:
        """False where it has let go."""
        while self._to_reader:
            piece = self._to_reader.pop(0)
            try:
                sent = self._inner.send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                return False
            if sent < len(piece):
                self._to_reader.insert(0, piece[sent:])
                break
        return True
