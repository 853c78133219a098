"""The two kinds of channel that the stand-in for the agent uses: one that serves requests, and one for each attempt.

Both run a script of `shell_scripts` and read its answers.  A worker is not trusted: whatever is not an answer raises ProtocolError.
"""

from __future__ import annotations

import secrets
import select
import time
from typing import NamedTuple

from cloudtask.errors import ConnectError
from cloudtask.transports import Channel, Connection
from cloudtask.wire import ProtocolError
from cloudtask.workers import shell_scripts
from cloudtask.workers.last_words import last_words

_CHUNK = 1 << 18
_LONGEST_LINE = 1 << 16
_LONGEST_NOISE = 1 << 20
_TICK_MS = 100


def new_mark() -> str:
    """What a script says first: nothing that a login shell prints looks like it."""
    return f"cloudtask-{secrets.token_hex(16)}"


class Script:
    """A script on a channel of its own: buffered writing, and reading behind the mark, without blocking."""

    def __init__(self, connection: Connection, mark: str, script: bytes) -> None:
        self.channel: Channel = connection.open(shell_scripts.BOOTSTRAP)
        self._mark = mark.encode() + b"\n"
        self._unsent = bytearray(script)
        self._last = False
        self.buffer = bytearray()
        self.begun = False
        """The mark has come: the script runs."""
        self.ended = False
        self.write(b"")

    def write(self, data: bytes, last: bool = False) -> None:
        """Queue data for the script's stdin; after the ``last`` it ends.  A script that is gone swallows it: reading tells of that."""
        self._unsent += data
        self._last = self._last or last
        try:
            while self._unsent and (sent := self.channel.send(bytes(self._unsent[:_CHUNK]))):
                del self._unsent[:sent]
        except (OSError, EOFError):
            self._unsent.clear()
        if self._last and not self._unsent:
            self._last = False
            self.channel.shutdown_write()

    @property
    def events(self) -> int:
        """What to wait for at the channel's descriptor."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def fill(self) -> bool:
        """Take in what has come (a chunk at most) and send what can be sent; True when something came."""
        self.write(b"")
        try:
            data = self.channel.recv(_CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self.ended = True
            return False
        self.buffer += data
        if not self.begun:
            self._look_for_mark()
        return True

    def _look_for_mark(self) -> None:
        noise, found, rest = self.buffer.partition(self._mark)
        if found:
            self.begun = True
            self.buffer = bytearray(rest)
        elif len(noise) > _LONGEST_NOISE:
            raise ProtocolError("the login shell prints without end")

    def line(self) -> str | None:
        """The next whole line, without its end; None where there is none yet."""
        end = self.buffer.find(b"\n") if self.begun else -1
        if end < 0:
            if self.begun and len(self.buffer) > _LONGEST_LINE:
                raise ProtocolError("an answer without end")
            return None
        text = self.buffer[:end].decode("utf-8", "surrogateescape")
        del self.buffer[: end + 1]
        return text

    def close(self) -> None:
        """Let go of the channel."""
        self.channel.close()


def wait_for(script: Script, deadline: float) -> None:
    """Block until something has come or the script has ended.  Raises ConnectError at the deadline (of time.monotonic())."""
    while not script.fill() and not script.ended:
        if time.monotonic() > deadline:
            raise ConnectError("the worker's shell does not answer")
        poll = select.poll()
        poll.register(script.channel.fileno(), script.events)
        poll.poll(_TICK_MS)


class Control:
    """Requests to the worker's shell, one at a time.  `ask` blocks, and is for one thread."""

    def __init__(self, connection: Connection, key: str, seconds: float) -> None:
        mark = new_mark()
        self._login = connection.login
        self._script = Script(connection, mark, shell_scripts.control(key, mark))
        try:
            self.facts = dict(_pair(line) for line in self._answer(time.monotonic() + seconds))
        except BaseException:
            self.close()
            raise

    def ask(self, verb: str, *words: object, seconds: float = 60.0) -> list[str]:
        """The lines that answer a request.  Raises ConnectError when there is no answer."""
        self._script.write(" ".join([verb, *map(str, words)]).encode("utf-8", "surrogateescape") + b"\n")
        return self._answer(time.monotonic() + seconds)

    def _answer(self, deadline: float) -> list[str]:
        lines: list[str] = []
        while True:
            line = self._script.line()
            if line is None:
                if self._script.ended:
                    reason = last_words(self._script.channel.complaints()) or "silently"
                    raise ConnectError(f"{self._login}: the worker's shell ended: {reason}")
                wait_for(self._script, deadline)
            elif line.startswith("= "):
                return lines
            else:
                lines.append(line)

    def close(self) -> None:
        """End of the requests."""
        self._script.close()


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" ")
    return name, value


class Began(NamedTuple):
    """The job runs, in this process group."""

    group: int


class Wrote(NamedTuple):
    """A piece of output; stream 1 is standard output, 2 standard error."""

    stream: int
    data: bytes


class Told(NamedTuple):
    """All output that there was at the last tick has come."""


class Over(NamedTuple):
    """The job's shell has ended, with all of its group, and all output has come.  ``refused``: nothing was started, for want of space.

    ``late``: nothing was started either, since an earlier connection's end had called the attempt lost.
    """

    status: int
    cpu: float
    unstarted: bool
    refused: bool
    late: bool = False


class Unfit(NamedTuple):
    """The job was not started: the worker cannot keep its files."""

    why: str


class Broken(NamedTuple):
    """The script ended without a word: killed, or cut."""

    why: str


Event = Began | Wrote | Told | Over | Unfit | Broken


class JobChannel:
    """The script of one attempt, and what it tells."""

    def __init__(self, connection: Connection, mark: str, script: bytes) -> None:
        self._script = Script(connection, mark, script)
        self._stream = 0
        self._awaited = 0
        self._over = False

    def fileno(self) -> int:
        """Wait here, for `wait_events`."""
        return self._script.channel.fileno()

    @property
    def wait_events(self) -> int:
        """For poll()."""
        return self._script.events

    def tick(self) -> None:
        """Ask for the output so far."""
        self._script.write(b"tick\n")

    def read(self) -> list[Event]:
        """What was told since the last call.  Raises ProtocolError."""
        came = self._script.fill()
        events: list[Event] = []
        while not self._over and (event := self._next()) is not None:
            events.append(event)
        if not came and self._script.ended and not self._over:
            self._over = True
            events.append(Broken(last_words(self._script.channel.complaints()) or "its shell was killed"))
        return events

    def _next(self) -> Event | None:
        if self._awaited:
            return self._piece()
        line = self._script.line()
        if line is None:
            return None
        return self._event(line)

    def _piece(self) -> Event | None:
        data = bytes(memoryview(self._script.buffer)[: self._awaited])
        if not data:
            return None
        del self._script.buffer[: len(data)]
        self._awaited -= len(data)
        return Wrote(self._stream, data)

    def _event(self, line: str) -> Event | None:
        kind, _, rest = line.partition(" ")
        try:
            if kind in ("O", "E"):
                self._stream, self._awaited = (1 if kind == "O" else 2), _natural(rest)
                return self._piece() if self._awaited else self._next()
            if kind == "S":
                return Began(_natural(rest))
            if kind == "T":
                return Told()
            self._over = True
            if kind == "F":
                return Unfit(last_words(rest.encode("utf-8", "surrogateescape")))
            if kind == "X":
                return _over(*rest.split())
        except (ValueError, TypeError) as error:
            raise ProtocolError(f"not an answer: {line[:80]!r}") from error
        raise ProtocolError(f"not an answer: {line[:80]!r}")

    def close(self) -> None:
        """Let go of the channel; what still runs behind it is ended there as cut off."""
        self._script.close()


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _over(status: str, unstarted: str, user: str, system: str) -> Over:
    return Over(_natural(status), _seconds(user) + _seconds(system), unstarted == "1", unstarted == "2", unstarted == "3")


def _seconds(text: str) -> float:
    """``0m1.25s``, as times prints it (POSIX), in whatever locale."""
    minutes, _, seconds = text.removesuffix("s").partition("m")
    return int(minutes) * 60 + float(seconds.replace(",", "."))
