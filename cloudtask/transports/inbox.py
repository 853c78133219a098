"""What arrives on an ssh channel, kept for a reader that never blocks.

paramiko has a buffer of its own for this, which is not good enough in three ways: it moves all that is left in it on every read
(a backlog of some MiB then costs seconds), its descriptor for select() can miss a wake-up because stdout and stderr share it without
a common lock, and stderr that nobody reads stops the program.  `Inbox` takes its place: `Channel.in_buffer` and
`Channel.in_stderr_buffer` are set to the two faces of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

from cloudtask.transports.base import COMPLAINTS_KEPT


class Inbox:
    """Bytes fed by paramiko's thread, taken by ours, under one lock.  `fileno` is the read end of a pipe.

    ``credit`` is called in paramiko's thread with the number of stderr bytes that were swallowed.
    """

    def __init__(self, credit: Callable[[int], None]) -> None:
        self.stdout = _Stdout(self)
        self.stderr = _Stderr(self)
        self._credit = credit
        self._lock = threading.Lock()
        self._chunks: deque[bytes] = deque()
        self._complaints = bytearray()
        self._ended = False
        self._signalled = False
        self._disposed = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)

    def fileno(self) -> int:
        """Readable when `take` has something to give, or after `wake`; -1 once disposed of."""
        return -1 if self._disposed else self._reader

    def take(self, size: int) -> bytes:
        """At most ``size`` bytes; ``b""`` at the end.  Raises BlockingIOError when there are none yet."""
        with self._lock:
            taken, room = [], size
            while self._chunks and room > 0:
                chunk = self._chunks.popleft()
                if len(chunk) > room:
                    self._chunks.appendleft(chunk[room:])
                    chunk = chunk[:room]
                taken.append(chunk)
                room -= len(chunk)
            if not self._chunks and not self._ended:
                self._clear()
                if not taken:
                    raise BlockingIOError
            return taken[0] if len(taken) == 1 else b"".join(taken)

    def complaints(self) -> bytes:
        """The newest 64 KiB of stderr."""
        with self._lock:
            return bytes(self._complaints)

    def wake(self) -> None:
        """Makes the descriptor readable once."""
        with self._lock:
            self._signal()

    def dispose(self) -> None:
        """Gives the descriptors back.  Idempotent."""
        with self._lock:
            if not self._disposed:
                self._disposed = self._ended = True
                self._chunks.clear()
                os.close(self._reader)
                os.close(self._writer)

    def end(self) -> None:
        """Nothing more comes."""
        with self._lock:
            self._ended = True
            self._signal()

    def feed(self, data: bytes) -> None:
        """stdout brought ``data``."""
        with self._lock:
            if not self._disposed:
                self._chunks.append(data)
                self._signal()

    def swallow(self, data: bytes) -> None:
        """stderr brought ``data``."""
        with self._lock:
            self._complaints += data[-COMPLAINTS_KEPT:]
            del self._complaints[:-COMPLAINTS_KEPT]
        self._credit(len(data))

    def _signal(self) -> None:
        if not self._signalled and not self._disposed:
            self._signalled = True
            os.write(self._writer, b".")

    def _clear(self) -> None:
        if self._signalled and not self._disposed:
            self._signalled = False
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 16)


class _Stdout:
    """The face that paramiko takes for `Channel.in_buffer`."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def feed(self, data: bytes) -> None:
        self._inbox.feed(data)

    def close(self) -> None:
        self._inbox.end()


class _Stderr:
    """The face that paramiko takes for `Channel.in_stderr_buffer`."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def feed(self, data: bytes) -> None:
        self._inbox.swallow(data)

    def close(self) -> None:
        """stdout's end counts: both come together."""
