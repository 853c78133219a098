"""One process runs a session: it holds ``lock`` with flock for as long as it lives.

The kernel lets go of the lock when the holder dies, however it dies.  The descriptor is not inheritable, so that no child keeps it.
The file says who holds it, for messages only, and is never removed: a removed file could be locked twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket

from cloudtask.errors import SessionBusyError, SessionError
from cloudtask.session.layout import open_inside, read_inside


class SessionLock:
    """A session's lock, held from `acquire` to `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, root: str) -> SessionLock:
        """Take the lock of the session in the directory ``root``, without waiting.

        Raises SessionBusyError naming the holder, SessionError where flock does not work, OSError where the file cannot be opened.
        """
        descriptor = open_inside(root, "lock", os.O_RDWR | os.O_CREAT)
        try:
            _take(descriptor, root)
            _prove(root)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except (OSError, SessionError):
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder(root: str) -> str:
    """Who holds the lock, by what the file says: ``pid 4711 on host``, or ``another process``."""
    pid, _, host = read_inside(root, "lock").decode(errors="replace").strip().partition(" ")
    return f"pid {pid} on {host}" if pid.isdigit() and host and host.isprintable() else "another process"


def _take(descriptor: int, root: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
