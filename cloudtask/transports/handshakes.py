"""At most eight ssh handshakes at a time for this user on this controller, whatever number of processes make them.

A stock sshd drops connections at random once ten are not logged in yet (``MaxStartups 10:30:100``, sshd_config(5)), and a
handshake is the most expensive thing that a supervisor does.  The slots are eight files, each held with ``flock``: a process that
dies lets go of its own.  A host that does not answer keeps its slot for three seconds only, or eight such hosts would stop all others.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from types import TracebackType
from typing import Self

SLOTS = 8
"""How many handshakes may be under way."""

HOLD = 3.0
"""Seconds after which a slot is let go of, handshake or not."""

_PAUSE = (0.01, 0.05)
"""Seconds between two looks for a free slot; drawn at random, so that waiting processes do not march in step."""


def directory() -> str:
    """Where the slot files are, with XDG_STATE_HOME honoured."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "cloudtask", "handshakes")


class Slot:
    """Room for one handshake: a context manager that waits until a slot is free, but not past ``deadline`` (monotonic seconds).

    After that, and where the slot files cannot be made, it goes on without one: jittered retries are the second net.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._timer = threading.Timer(HOLD, self.release)
        self._timer.daemon = True

    @property
    def held(self) -> bool:
        """True while a slot is really held."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Waits for a slot.  Once only."""
        try:
            os.makedirs(directory(), mode=0o700, exist_ok=True)
            while not self._take_any():
                if time.monotonic() > self._deadline:
                    return
                time.sleep(random.uniform(*_PAUSE))
        except OSError:
            return
        self._timer.start()

    def release(self) -> None:
        """Lets go of the slot, if one is held."""
        self._timer.cancel()
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _take_any(self) -> bool:
        for number in random.sample(range(SLOTS), SLOTS):
            descriptor = os.open(os.path.join(directory(), str(number)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if not isinstance(error, BlockingIOError):
                    raise
            else:
                self._descriptor = descriptor
                return True
        return False
