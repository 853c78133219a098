"""One process runs a session: it holds ``lock`` with flock for as long as it lives.

The kernel lets go of the lock when the holder dies, however it dies.  The descriptor is not inheritable, so that no child keeps it.
The file says who holds it, for messages only, and is never removed: a removed file could be locked twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from typing import NamedTuple

from cloudtask.errors import SessionBusyError, SessionError
from cloudtask.session.layout import open_inside, read_inside

WATCHDOG = "watchdog"
"""The note of a holder that cleans up after a run that died."""

_MOMENT = 0.3


class SessionLock:
    """A session's lock, held from `acquire` to `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, root: str, note: str = "") -> SessionLock:
        """Take the lock of the session in the directory ``root``; waits a moment only, for who just looks whether it is held.

        ``note`` (`WATCHDOG`) is written down with who holds it.  Raises SessionBusyError naming the holder, SessionError where
        flock does not work, OSError where the file cannot be opened.
        """
        descriptor = open_inside(root, "lock", os.O_RDWR | os.O_CREAT)
        try:
            _take(descriptor, root)
            _prove(root)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()} {note}".strip().encode() + b"\n", 0)
        except (OSError, SessionError):
            os.close(descriptor)
            raise
        return cls(descriptor)

    def touch(self) -> None:
        """Give the file a new modification time."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Holder(NamedTuple):
    """Who holds, or held, a lock, by what its file says; ``pid`` is 0 where it says nothing that makes sense."""

    pid: int
    host: str
    note: str

    def __str__(self) -> str:
        return f"{self.note + ', ' if self.note else ''}pid {self.pid} on {self.host}" if self.pid else "another process"


def holder(root: str) -> Holder:
    """Who wrote itself into the lock's file last."""
    words = read_inside(root, "lock").decode(errors="replace").split()
    if len(words) not in (2, 3) or not words[0].isdigit() or not all(word.isprintable() for word in words):
        return Holder(0, "", "")
    return Holder(int(words[0]), words[1], words[2] if words[2:] else "")


def is_held(root: str, name: str = "lock") -> bool:
    """Whether some process holds the lock now (or another file of the session).  Takes it for an instant where nobody does."""
    descriptor = open_inside(root, name, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def last_beat(root: str) -> int:
    """When the holder gave its last sign of life, in nanoseconds of the file system's clock: good for comparing only."""
    return os.stat(os.path.join(root, "lock"), follow_symlinks=False).st_mtime_ns


def _take(descriptor: int, root: str) -> None:
    deadline = time.monotonic() + _MOMENT
    try:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_MOMENT / 10)
    except BlockingIOError:
        raise SessionBusyError(f"session {root} is run by {holder(root)}: wait for it to end, or end it") from None
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise _unlockable(root) from error
        raise


def _prove(root: str) -> None:
    """Some network file systems grant every lock: a second open file must be refused what we hold."""
    second = open_inside(root, "lock", os.O_RDWR)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(second)
    raise _unlockable(root)


def _unlockable(root: str) -> SessionError:
    return SessionError(f"{root}: this file system has no working locks (flock); choose a directory on a local disk with --sessions")
