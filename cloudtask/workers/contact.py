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

from cloudtask.errors import CloudtaskError, ConnectError, HostKeyError, RefusedError, WorkerError
from cloudtask.transports import Connection
from cloudtask.transports import find as find_transport
from cloudtask.workers import messages as m
from cloudtask.workers.peer import Peer, open_peer

FIRST_CONTACT_TRIES = 3
FIRST_CONTACT_SECONDS = 30.0
_LONGEST_WAIT = 30.0
_BRIEF_SECONDS = 5.0
"""A contact that ends sooner did not do what it was made for."""
_BOOT_WAIT = 10.0
_REFUSED_WAIT = 5.0
"""Seconds.  sshd keeps those out for a while who fail to log in more often (PerSourcePenalties in sshd_config(5), 5 s for each)."""
_OTHER_KEY_SECONDS = 60.0
"""How long a machine may show a key that is not its own: cloud-init puts it in the place of the image's while sshd runs already."""


class Reached(NamedTuple):
    """A connection, the agent (or its stand-in) behind it, and lines about it for the worker's log."""

    connection: Connection
    peer: Peer
    notes: list[str]


def reach(spec: m.WorkerSpec) -> Reached:
    """Make contact: blocking, for a thread.  Raises CloudtaskError or OSError."""
    connection = find_transport(spec.transport).connect(spec.address, spec.connect)
    notes: list[str] = []
    try:
        peer = open_peer(connection, f"{spec.session}.{spec.number}", notes.append)
    except (WorkerError, OSError):
        connection.close()
        raise
    return Reached(connection, peer, notes)


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
        except (CloudtaskError, OSError) as error:
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


class Boot:
    """The patience with a machine that was just launched, for so many ``seconds``: it may answer nothing, hang up, or refuse our key.

    Only a host key that stays another's ends it sooner, and what no time can mend.
    """

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self._other_key: float | None = None

    def pause(self, error: Exception, failures: int, now: float) -> float | None:
        """Seconds until the next try; None where there is no use in one."""
        wait = min(_BOOT_WAIT, 2.0 ** min(failures - 1, 10)) * random.uniform(0.8, 1.2)
        if isinstance(error, HostKeyError):
            self._other_key = now if self._other_key is None else self._other_key
            if now - self._other_key > _OTHER_KEY_SECONDS:
                return None
        elif not isinstance(error, (ConnectError, RefusedError, OSError)) and failures >= FIRST_CONTACT_TRIES:
            return None
        return max(wait, _REFUSED_WAIT * random.uniform(1.0, 1.4)) if isinstance(error, RefusedError) else wait


class Contact:
    """Decides when to try again and when contact counts as lost.

    A worker that was never reached gets three tries in 30 s, and a refused key or host key ends it at once.  One that was
    reached before is tried for ever; it is silent once ``lost_timeout`` seconds of the machine being awake (CLOCK_MONOTONIC
    does not count a suspended laptop) have passed and three connects at least have failed.  One that was just launched is given
    ``boot_timeout`` seconds from now, see `Boot`.
    """

    def __init__(self, known: bool, lost_timeout: float, boot_timeout: float | None = None) -> None:
        self._known = known
        self._lost_timeout = lost_timeout
        self._boot = None if known or boot_timeout is None else Boot(boot_timeout)
        self.silent = False
        self.away_told = False
        self._brief = 0
        self._made = float("-inf")
        self.cut("no answer yet")

    @property
    def booting(self) -> bool:
        """It was just launched, and not reached yet."""
        return self._boot is not None and not self._known

    def cut(self, why: str = "connection closed") -> None:
        """Contact is gone since now; the first new try may come at once, unless contact keeps ending as soon as it is made."""
        self.since = time.monotonic()
        self.failures = 0
        self._brief = self._brief + 1 if self.since - self._made < _BRIEF_SECONDS else 0
        self.next_try = self.since + (min(_LONGEST_WAIT, 0.1 * 2 ** min(self._brief, 10)) if self._brief else 0)
        self.reason = why

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
        if self._boot and not self._known:
            pause = self._boot.pause(error, self.failures, now)
            self.next_try = now + (pause or 0)
            return pause is None
        if not self._known and (
            isinstance(error, RefusedError) or self.failures >= FIRST_CONTACT_TRIES or now - self.since > FIRST_CONTACT_SECONDS
        ):
            return True
        wait = min(_LONGEST_WAIT, 0.5 * 2 ** min(self.failures, 10))
        self.next_try = now + wait * random.uniform(0.5, 1.0)
        return False

    def overdue(self) -> bool:
        """True when a machine that was launched has had its time; `reason` says what was wrong last."""
        if self._boot is None or self._known or time.monotonic() < self._boot.until:
            return False
        self.reason = f"not ready within --boot-timeout: {self.reason}"
        return True

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
