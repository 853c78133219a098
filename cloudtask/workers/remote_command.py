"""One command on a worker, fed and read to its end by a thread that may block, with a deadline and a way to call it off."""

from __future__ import annotations

import select
import shlex
import threading
import time
from collections.abc import Callable

from cloudtask.errors import SetupError
from cloudtask.transports import Channel, Connection

_CHUNK = 1 << 16
_TICK_MS = 200
_STATUS_SECONDS = 5.0


class Limit:
    """How long something may take: until ``deadline`` (of time.monotonic()), or until ``cancelled`` is set."""

    def __init__(self, what: str, deadline: float, cancelled: threading.Event | None = None) -> None:
        self._what = what
        self._began = time.monotonic()
        self._deadline = deadline
        self._cancelled = cancelled or threading.Event()

    def check(self) -> None:
        """Raises SetupError when the time is over or it was called off."""
        if self._cancelled.is_set():
            raise SetupError(f"{self._what}: called off")
        if time.monotonic() > self._deadline:
            seconds = max(0.0, self._deadline - self._began)
            raise SetupError(f"{self._what}: not done in {seconds:.0f} s; a larger --setup-timeout allows more")


class RemoteCommand:
    """A program on the worker.  ``received`` is called with each piece of its stdout.

    Raises SetupError when the limit is reached, EOFError or OSError from `write` when the program or the connection is gone.
    """

    def __init__(self, channel: Channel, limit: Limit, received: Callable[[bytes], object]) -> None:
        self._channel = channel
        self._limit = limit
        self._received = received
        self._ended = False

    def write(self, data: bytes) -> None:
        """Send all of it, and take in what comes meanwhile."""
        view = memoryview(data)
        while view:
            self._limit.check()
            self._drain()
            sent = self._channel.send(view)
            view = view[sent:]
            if not sent:
                if self._ended:
                    raise EOFError("the program has ended")
                self._wait(select.POLLIN | select.POLLOUT)

    def finish(self) -> int | None:
        """End its stdin, read to the end; returns the exit status, None where contact was lost."""
        self._channel.shutdown_write()
        while not self._drain():
            self._limit.check()
            self._wait(select.POLLIN)
        return exit_status(self._channel)

    def _drain(self) -> bool:
        while not self._ended:
            try:
                data = self._channel.recv(_CHUNK)
            except BlockingIOError:
                break
            if not data:
                self._ended = True
            else:
                self._received(data)
        return self._ended

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), events)
        poll.poll(_TICK_MS)


def exit_status(channel: Channel) -> int | None:
    """The exit status, which may come a moment after the end of the output."""
    deadline = time.monotonic() + _STATUS_SECONDS
    pause = threading.Event()
    while (status := channel.exit_status()) is None and time.monotonic() < deadline:
        pause.wait(0.005)
    return status


def ask(connection: Connection, script: str, limit: Limit, stdin: bytes = b"") -> bytes:
    """What a small shell script prints (its stdout), behind whatever the login shell printed first.

    The script is one line without ``!``, which csh would take for its own.  A program that does not read all of ``stdin`` is no error.
    """
    mark = "cloudtask-answer:"
    pieces: list[bytes] = []
    channel = connection.open(f"exec /bin/sh -c {shlex.quote(f'echo {mark}; {script}')}")
    try:
        command = RemoteCommand(channel, limit, pieces.append)
        try:
            command.write(stdin)
        except (BrokenPipeError, ConnectionResetError):
            pass
        command.finish()
    finally:
        channel.close()
    return b"".join(pieces).partition(mark.encode() + b"\n")[2]
