"""What a supervisor holds of its worker: a `Peer`, which takes and gives frames.

`open_peer` starts the agent over a connection; where the worker has no python3 it puts `ShellPeer`, which stands in for the agent, in its
place.  Frames are those of `cloudtask.agent.codec`.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from cloudtask import wire
from cloudtask.errors import ConnectError
from cloudtask.transports import Channel, Connection
from cloudtask.workers.last_words import last_words
from cloudtask.workers.shell_peer import ShellPeer

Frame = tuple[dict[str, Any], bytes]

GREETING_SECONDS = 30.0
"""How long a worker may take from the command to the agent's first word: a slow login script, and python's start."""

_READ = 1 << 18
_MOST_A_CALL = 4 << 20
_TOGETHER = 1 << 16
_TICK_MS = 200


class Peer(Protocol):
    """The other end of a conversation.  One thread uses it; nothing blocks."""

    def fileno(self) -> int:
        """A descriptor for select(): readable when `receive` may have something to give, or to raise."""

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Queue a frame; `flush` sends it.  Raises ValueError for a frame that is too long.  A peer that is gone swallows it."""

    def receive(self) -> list[Frame]:
        """Whole frames that have come, some megabytes at most; what is left is there for the next call.

        Raises EOFError, with the reason, once the connection is gone, or where the worker sent what no agent sends.
        """

    def flush(self) -> bool:
        """Send what can be sent now; True when nothing is left."""

    def close(self) -> None:
        """Let go of the worker; an agent there goes on.  Idempotent."""


class AgentPeer:
    """The agent at the other end of a channel.  ``first`` is what has come over it behind the greeting."""

    def __init__(self, channel: Channel, first: bytes = b"") -> None:
        self._channel = channel
        self._unpacker = wire.Unpacker()
        self._first = first
        self._outgoing: deque[bytes | memoryview] = deque()
        self._gone = ""

    def fileno(self) -> int:
        """See `Peer`."""
        return self._channel.fileno()

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """See `Peer`."""
        self._outgoing.append(wire.pack(header, payload))

    def receive(self) -> list[Frame]:
        """See `Peer`."""
        frames: list[Frame] = []
        if self._first:
            first, self._first = self._first, b""
            frames += self._unpack(first)
        taken = 0
        while not self._gone and taken < _MOST_A_CALL:
            try:
                data = self._channel.recv(_READ)
            except BlockingIOError:
                break
            except (OSError, EOFError) as error:
                self._gone = str(error) or "the connection is gone"
                break
            if not data:
                self._gone = self._reason()
                break
            taken += len(data)
            frames += self._unpack(data)
        if self._gone and not frames:
            raise EOFError(self._gone)
        return frames

    def _unpack(self, data: bytes) -> list[Frame]:
        try:
            return self._unpacker.feed(data)
        except wire.ProtocolError as error:
            self._gone = f"the worker sent garbage: {error}"
            return []

    def _reason(self) -> str:
        said = last_words(self._channel.complaints())
        return f"closed by the worker: {said}" if said else "closed by the worker"

    def flush(self) -> bool:
        """See `Peer`."""
        while self._outgoing:
            piece = self._next_piece()
            try:
                sent = self._channel.send(piece)
            except (OSError, EOFError):
                # Reading tells why.
                self._outgoing.clear()
                break
            if sent < len(piece):
                self._outgoing.appendleft(memoryview(piece)[sent:])
                return False
        return True

    def _next_piece(self) -> bytes | memoryview:
        """The next frame; small ones are put together."""
        piece = self._outgoing.popleft()
        if not self._outgoing or len(piece) >= _TOGETHER:
            return piece
        pieces, size = [piece], len(piece)
        while self._outgoing and size + len(self._outgoing[0]) <= _TOGETHER:
            pieces.append(self._outgoing.popleft())
            size += len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        """See `Peer`."""
        self._gone = self._gone or "closed"
        self._channel.close()


def open_peer(connection: Connection, key: str, say: Callable[[str], None]) -> Peer:
    """Start the agent that keeps the home ``key`` (``SESSION.WORKER``), or reach the one that runs.

    Blocks up to half a minute, so it is for a thread.  ``say`` gets lines for the worker's log.  Raises ConnectError with what the worker
    said last where nothing answers, and SetupError where the worker has neither python3 nor what stands in for it.
    """
    nonce = wire.new_nonce()
    channel = connection.open(wire.launch_command(key, nonce))
    try:
        kind, rest = _wait_for_mark(channel, connection.login, wire.Greeting(nonce))
        if kind == "agent":
            peer = AgentPeer(channel, rest)
            _send_program(channel, connection.login)
            return peer
    except BaseException:
        channel.close()
        raise
    channel.close()
    return ShellPeer(connection, key, say)


def _wait_for_mark(channel: Channel, login: str, greeting: wire.Greeting) -> tuple[str, bytes]:
    deadline = time.monotonic() + GREETING_SECONDS
    printed = b""
    while True:
        try:
            data = channel.recv(_READ)
        except BlockingIOError:
            _wait(channel, select.POLLIN, deadline, login)
            continue
        except (OSError, EOFError) as error:
            raise ConnectError(f"{login}: the connection ended before the agent started: {error}") from error
        if not data:
            said = last_words(channel.complaints()) or last_words(printed)
            raise ConnectError(f"{login}: the agent does not start: {said or 'its shell ended without a word'}")
        printed = (printed + data)[-wire.NOISE_KEPT :]
        found = greeting.feed(data)
        if found:
            return found


def _send_program(channel: Channel, login: str) -> None:
    unsent = memoryview(wire.agent_payload())
    deadline = time.monotonic() + GREETING_SECONDS
    while unsent:
        try:
            sent = channel.send(unsent)
        except (OSError, EOFError) as error:
            said = last_words(channel.complaints()) or str(error)
            raise ConnectError(f"{login}: the agent does not start: {said or 'the connection ended'}") from error
        unsent = unsent[sent:]
        if not sent:
            _wait(channel, select.POLLIN | select.POLLOUT, deadline, login)


def _wait(channel: Channel, events: int, deadline: float, login: str) -> None:
    """Until something happens at the channel, for a moment at most.  Raises ConnectError at the deadline."""
    if time.monotonic() > deadline:
        said = last_words(channel.complaints())
        why = f"it said: {said}" if said else "does a login script wait for something?"
        raise ConnectError(f"{login}: no word from the agent in {GREETING_SECONDS:.0f} s; {why}")
    poll = select.poll()
    poll.register(channel.fileno(), events)
    poll.poll(_TICK_MS)
