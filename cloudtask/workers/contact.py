"""Making contact with a worker and making it again: tries, waits that grow, and when to call contact lost.

Connecting blocks, so each try runs in a thread, which wakes the supervisor's loop by a byte in a socket.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from cloudtask.errors import RefusedError, WorkerError
from cloudtask.transports import Connection
from cloudtask.workers.peer import Peer

FIRST_CONTACT_TRIES = 3
FIRST_CONTACT_SECONDS = 30.0
_LONGEST_WAIT = 30.0
_BRIEF_SECONDS = 5.0
"""A contact that ends sooner did not do what it was made for."""


class Reached(NamedTuple):
    """A connection, the agent (or its stand-in) behind it, and lines about it for the worker's log."""

    connection: Connection
    peer: Peer
    notes: list[str]


class Background:
    """Runs one blocking call at a time in a thread; its outcome is fetched by the loop that waits on :meth:`fileno`."""

    def __init__(self) -> None:
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.busy = False

    def fileno(self) -> int:
        """Readable when an outcome is there."""
        return self._wake_read.fileno()

    def start(self, call: Callable[[], object]) -> None:
        """Begin the call."""
        self.busy = True
        threading.Thread(target=self._run, args=(call,), daemon=True).start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            outcome: object = call()
        except (WorkerError, OSError) as error:
            outcome = error
        self._outcomes.put(outcome)
        self._wake_write.send(b"\0")

    def close(self) -> None:
        """Let go of the wake-up sockets; a call that still runs is not waited for."""
        self._wake_read.close()
        self._wake_write.close()

    def outcome(self) -> object:
        """What the call returned, or the error it raised.  Only when readable."""
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(64)
        self.busy = False
        return self._outcomes.get()


class Contact:
    """Decides when to try again and when contact counts as lost.

    A worker that was never reached gets three tries in 30 s, and a refused key or host key ends it at once.  One that was
    reached before is tried for ever; it is silent once ``lost_timeout`` seconds of the machine being awake (CLOCK_MONOTONIC
    does not count a suspended laptop) have passed and three connects at least have failed.
    """

    def __init__(self, known: bool, lost_timeout: float) -> None:
        self._known = known
        self._lost_timeout = lost_timeout
        self.silent = False
        self.away_told = False
        self._brief = 0
        self._made = float("-inf")
        self.cut()

    def cut(self) -> None:
        """Contact is gone since now; the first new try may come at once, unless contact keeps ending as soon as it is made."""
        self.since = time.monotonic()
        self.failures = 0
        self._brief = self._brief + 1 if self.since - self._made < _BRIEF_SECONDS else 0
        self.next_try = self.since + (min(_LONGEST_WAIT, 0.1 * 2 ** min(self._brief, 10)) if self._brief else 0)
        self.reason = "connection closed"

    def made(self) -> None:
        """Contact: from now on the worker is known."""
        self._made = time.monotonic()
        self._known = True
        self.silent = False
        self.away_told = False
        self.failures = 0

    def failed(self, error: Exception) -> bool:
        """A try failed; True when there is no use in another one."""
        now = time.monotonic()
        self.failures += 1
        self.reason = str(error) or type(error).__name__
        if not self._known and (
            isinstance(error, RefusedError) or self.failures >= FIRST_CONTACT_TRIES or now - self.since > FIRST_CONTACT_SECONDS
        ):
            return True
        wait = min(_LONGEST_WAIT, 0.5 * 2 ** min(self.failures, 10))
        self.next_try = now + wait * random.uniform(0.5, 1.0)
        return False

    def away(self) -> bool:
        """True once, when a known worker has not answered the first tries."""
        if self.away_told or not self._known:
            return False
        if self.failures < FIRST_CONTACT_TRIES and time.monotonic() - self.since <= FIRST_CONTACT_SECONDS:
            return False
        self.away_told = True
        return True

    def lost(self) -> bool:
        """True once, when contact counts as lost."""
        if self.silent or not self._known or self.failures < FIRST_CONTACT_TRIES or time.monotonic() - self.since < self._lost_timeout:
            return False
        self.silent = True
        return True
