"""Jobs that have written nothing for a while are not looked at five times a second: the kernel says when they write.

inotify(7) on the spool directory, through ctypes; where that cannot be had (no Linux, no ctypes, no watches left) looking goes on.
The watch is put up only while all is still, so that a job that writes much costs nothing by it.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MODIFY = 0x2
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
"""IN_NONBLOCK and IN_CLOEXEC have these values by definition."""
_QUIET_AFTER = 3.0


class Stillness:
    """Whether the running attempts write, and the watch that ends a quiet time.  ``fd`` is to be polled; -1 where there is none."""

    def __init__(self, directory: str) -> None:
        self._directory = os.fsencode(directory)
        self._libc: "Any" = None
        self._watch = -1
        self._seen: "object" = None
        self._since = 0.0
        self.fd = -1
        self.possible = True

    @property
    def kept(self) -> bool:
        """The kernel watches: there is no need to look."""
        return self._watch >= 0

    def observe(self, seen: object, now: float) -> bool:
        """``seen`` is what a look found.  True when it has not changed for some seconds, and the kernel watches from now on."""
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif self.possible and not self.kept and now - self._since >= _QUIET_AFTER:
            self._begin()
        return self.kept

    def _begin(self) -> None:
        try:
            if self._libc is None:
                import ctypes

                self._libc = ctypes.CDLL(None, use_errno=True)
                self.fd = self._libc.inotify_init1(_NONBLOCK_CLOEXEC)
            self._watch = self._libc.inotify_add_watch(self.fd, self._directory, _MODIFY) if self.fd >= 0 else -1
        except (ImportError, OSError, AttributeError):
            self.fd = -1
        self.possible = self._watch >= 0

    def end(self) -> None:
        """Something was written, or a job was started: look again."""
        self._seen = None
        if not self.kept:
            return
        self._libc.inotify_rm_watch(self.fd, self._watch)
        self._watch = -1
        try:
            # What is queued, the end of the watch itself among it.
            while os.read(self.fd, 65536):
                pass
        except BlockingIOError:
            pass
