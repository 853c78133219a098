"""A channel to a program of this machine, by a socket pair: what `local` runs, and the `ssh` processes of `openssh`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from cloudtask.transports.base import COMPLAINTS_KEPT
from cloudtask.transports.socket_end import SocketEnd

_FIRST = 4096


class Complaints:
    """Reads a stream to its end in a thread of its own and remembers the newest bytes, so that its writer never blocks."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._first = bytearray()
        self._ended = False
        self._news = threading.Condition()
        threading.Thread(target=self._drain, name="complaints", daemon=True).start()

    def kept(self) -> bytes:
        """The newest 64 KiB so far."""
        with self._news:
            return bytes(self._kept)

    def ended(self, timeout: float) -> bool:
        """Waits up to ``timeout`` seconds for the end of the stream; True when it has come."""
        with self._news:
            return self._news.wait_for(lambda: self._ended, timeout)

    def begins_with(self, words: bytes, timeout: float) -> bool:
        """Waits until ``words`` are among the first 4 KiB; False when the stream ends or ``timeout`` seconds pass without them."""
        with self._news:
            self._news.wait_for(lambda: self._ended or words in self._first, timeout)
            return words in self._first

    def _drain(self) -> None:
        with self._stream:
            while chunk := os.read(self._stream.fileno(), COMPLAINTS_KEPT):
                with self._news:
                    self._kept += chunk
                    del self._kept[:-COMPLAINTS_KEPT]
                    self._first += chunk[: _FIRST - len(self._first)]
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class ProgramChannel(SocketEnd):
    """A `Channel` to a program that it starts with ``argv``, in a process session of its own.

    Its stdin and stdout are one socket.  Raises OSError where the program cannot be started.
    """

    def __init__(self, argv: Sequence[str | bytes], *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.enter_context(ours)
            self._process = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE, cwd=cwd, env=env, start_new_session=True
            )
            undo.pop_all()
        ours.setblocking(False)
        super().__init__(ours)
        assert self._process.stderr is not None
        self.stderr = Complaints(self._process.stderr)

    def complaints(self) -> bytes:
        """See `Channel`."""
        if self._process.poll() is not None:
            self.stderr.ended(0.2)  # what it wrote last may still be in the pipe
        return self.stderr.kept()

    def exit_status(self) -> int | None:
        """See `Channel`."""
        code: int | None = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def close(self) -> None:
        """See `Channel`.  The program is left to end by itself; a thread waits for it, so that no zombie stays."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        if self._process.poll() is None:
            threading.Thread(target=self._process.wait, name="reaper", daemon=True).start()
