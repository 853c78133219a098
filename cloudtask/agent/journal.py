"""The agent's own journal: what it started and how that ended, so that the next agent knows it after a `kill -9` of this one.

One JSON array a line, appended and never changed::

    ["agent", session id]                     a new agent: the kernel's process session its jobs belong to, unless they escape
    ["start", job, attempt, epoch]            written before the attempt is started
    ["ended", result, places]                 after it was reaped; for ``places`` see `spool`
    ["returned", job, attempt]                takes a start back: it never happened
    ["broken", job, attempt]                  its output did not survive a crash of the machine: it is lost after all
    ["acked", [[job, attempt], ...]]          the controller has them on disk

Nothing is fsynced: a crash of the machine ends the jobs as well, and what is unacknowledged is then believed only if length and
checksum match.  Lines that cannot be written for want of space wait in memory; a reserve is given up for them.
"""

import errno
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_RESERVE = 256 * 1024
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Journal:
    """Appends to the file at ``path``.  ``reserve`` is the path of a file that is removed when the disk is full."""

    def __init__(self, path: str, reserve: str) -> None:
        self._reserve = reserve
        self._pending = bytearray()
        cut_torn_line(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.keep_reserve()

    def add(self, line: str) -> None:
        """Queue a line, without its newline."""
        self._pending += line.encode("ascii")
        self._pending += b"\n"

    def flush(self) -> None:
        """Write what is queued.  Raises OSError; then the rest stays queued."""
        while self._pending:
            try:
                written = os.write(self._fd, self._pending)
            except OSError as error:
                if error.errno not in NO_SPACE or not self.give_up_reserve():
                    raise
                continue
            del self._pending[:written]

    def keep_reserve(self) -> bool:
        """Set some space aside; False where there is none."""
        try:
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(fd, 0, _RESERVE)
            return True
        except OSError:
            self.give_up_reserve()
            return False
        finally:
            os.close(fd)

    def give_up_reserve(self) -> bool:
        """Free the space set aside; False when that was done before."""
        try:
            os.unlink(self._reserve)
            return True
        except OSError:
            return False


def cut_torn_line(path: str) -> None:
    """Cut off what follows the last newline: a line whose writer died."""
    try:
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            file.seek(max(0, size - (1 << 20)))
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
    except FileNotFoundError:
        pass


def read(path: str) -> "Iterator[list[Any]]":
    """The journal's lines.  What is no line of ours (after a crash of the machine) is passed over."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return
    with file:
        for text in file:
            try:
                line = json.loads(text.decode("ascii"))
            except ValueError:
                continue
            if isinstance(line, list) and len(line) > 1 and text.endswith(b"\n"):
                yield line


class Past:
    """What a journal tells: ``open`` attempts, ``ended`` ones, ``acked`` ones, and the last agent's process session."""

    def __init__(self, path: str) -> None:
        self.open: "set[tuple[int, int]]" = set()
        self.ended: "dict[tuple[int, int], tuple[list[Any], Any]]" = {}
        self.acked: "dict[tuple[int, int], list[Any] | None]" = {}
        self.session = 0
        for line in read(path):
            try:
                self._take(*line)
            except (TypeError, ValueError, IndexError):
                continue

    def _take(self, kind: str, *rest: "Any") -> None:
        if kind == "start":
            self.open.add((rest[0], rest[1]))
        elif kind == "ended":
            result, places = rest
            key = (result[0], result[1])
            self.open.discard(key)
            self.ended[key] = (result, places)
        elif kind == "returned":
            self.open.discard((rest[0], rest[1]))
        elif kind == "broken":
            if self.ended.pop((rest[0], rest[1]), None):
                self.open.add((rest[0], rest[1]))
        elif kind == "acked":
            for job, number in rest[0]:
                self.open.discard((job, number))
                result, _ = self.ended.pop((job, number), (None, None))
                self.acked[(job, number)] = result
        elif kind == "agent":
            self.session = int(rest[0])
