"""A session as a watchdog holds on to it: by open files, so that neither a move nor a deletion of its directory takes it away.

The lock is the same file wherever its directory is moved to, and is there until the last who has it open is gone.
"""

from __future__ import annotations

import fcntl
import os
import tempfile

from cloudtask.errors import SessionBusyError
from cloudtask.session import lock, replay
from cloudtask.session.layout import JOURNAL, open_inside
from cloudtask.session.state import SessionState


class Hold:
    """Raises OSError, SessionError where the session is not there at the beginning."""

    def __init__(self, root: str) -> None:
        self._first_root = root
        self._folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = open_inside(root, "lock", os.O_RDWR | os.O_CREAT)
        self._journal = open_inside(root, JOURNAL, os.O_RDONLY)

    @property
    def deleted(self) -> bool:
        """Its directory is no more."""
        return os.fstat(self._folder).st_nlink == 0

    @property
    def root(self) -> str:
        """Its directory, where that is now."""
        return self._first_root if self.deleted else os.readlink(f"/proc/self/fd/{self._folder}")

    @property
    def beat(self) -> int:
        """See `lock.last_beat`."""
        return os.fstat(self._lock).st_mtime_ns

    def is_held(self) -> bool:
        """Whether some process runs the session; also one that was put back in its place from a copy."""
        try:
            self.take()
        except SessionBusyError:
            return True
        self.release()
        try:
            return lock.is_held(self.root)
        except OSError:
            return False

    def take(self) -> None:
        """Take the lock without a word in it.  Raises SessionBusyError."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SessionBusyError from None

    def release(self) -> None:
        """Let go of it."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def state(self) -> SessionState:
        """What the journal says, after its deletion too.  Raises OSError, SessionError."""
        if not self.deleted:
            return replay.replay(os.path.join(self.root, JOURNAL), strict=True)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, JOURNAL)
            with open(path, "wb") as copy:
                copy.write(os.pread(self._journal, os.fstat(self._journal).st_size, 0))
            return replay.replay(path, strict=True)
