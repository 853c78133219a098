"""``journal.jsonl``: append-only, one JSON object a line; how it is read, written and made durable.  What the lines say: `records`.

A line is whole when it ends in a newline and holds a JSON object.  The last line may be torn (a write cut short by a crash, blocks
of NULs after a power cut): readers pass over it, the writer cuts it off.  Anything unreadable before it is a JournalError.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from cloudtask.errors import JournalError, StorageError
from cloudtask.session.layout import open_inside

GROUP_DELAY = 0.05
"""Seconds from the first unsynced write to the fdatasync of its group: with the sync's own time, under the 0.1 of the design."""

_READ_BUFFER = 1 << 20


class Record(NamedTuple):
    """One line: ``event`` is the name of its first key, ``fields`` the whole object, ``line`` counts from 1, the rest in bytes."""

    event: str
    fields: dict[str, Any]
    line: int
    offset: int
    end: int


def parse(data: bytes) -> dict[str, Any] | None:
    """The object on a line, or None for anything that is not a whole line."""
    if not data.endswith(b"\n"):
        return None
    try:
        fields = json.loads(data.decode())
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and fields else None


def read(path: str) -> Iterator[Record]:
    """Each whole line of the journal at ``path``, in order, in little memory; a torn last line is passed over.

    Raises JournalError naming file and line for garbage before the last line, OSError where the file cannot be read.
    """
    root, name = os.path.split(path)
    with os.fdopen(open_inside(root, name, os.O_RDONLY), "rb", buffering=_READ_BUFFER) as file:
        yield from read_open(file, path)


def read_open(file: BinaryIO, path: str) -> Iterator[Record]:
    """The same for a file that is open, and may be growing; ``path`` is for messages."""
    offset = 0
    for line, data in enumerate(file, start=1):
        fields = parse(data)
        if fields is None:
            # Half a line is the last one, even if its writer has added the rest by now.
            if data.endswith(b"\n") and file.read(1):
                raise JournalError(f"{path}, line {line}: not a journal record: {_excerpt(data)}; restore it, or remove that line")
            return
        end = offset + len(data)
        yield Record(next(iter(fields)), fields, line, offset, end)
        offset = end


def _excerpt(data: bytes) -> str:
    return ascii(data[:40].decode(errors="replace")) + ("..." if len(data) > 40 else "")


class Flusher:
    """Makes what is written to a descriptor durable in groups, from a thread of its own.

    ``written`` says how far the file goes now; not later than ``delay`` seconds after that, a fdatasync begins.
    A failed sync is final (the kernel has dropped the pages): StorageError from every later ``check``, ``wrote`` and ``sync``.
    """

    def __init__(self, descriptor: int, path: str, *, synced: int = 0, delay: float = GROUP_DELAY) -> None:
        self._descriptor = descriptor
        self._path = path
        self._delay = delay
        self._written = synced
        self._synced = synced
        self._failure: OSError | None = None
        self._idle = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._thread.start()

    @property
    def synced_offset(self) -> int:
        """The bytes before this are on disk."""
        return self._synced

    def check(self) -> None:
        """Raise StorageError when an earlier sync failed."""
        if self._failure is not None:
            raise unwritable(self._path, self._failure)

    def wrote(self, offset: int) -> None:
        """The file now ends at ``offset``, and is to be synced soon.  Never waits for the disk."""
        self.check()
        with self._changed:
            self._written = offset
            if self._idle:
                self._changed.notify()

    def sync(self) -> None:
        """Wait until everything written is on disk."""
        self.check()
        if self._synced < self._written:
            self._flush()
            self.check()

    def close(self) -> None:
        """End the thread; what is unsynced stays so.  The descriptor remains the caller's."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._await_group():
            self._flush()

    def _await_group(self) -> bool:
        """Wait for something unsynced, and then for more of it; False at the end."""
        with self._changed:
            self._idle = True
            self._changed.wait_for(lambda: self._closing or self._synced < self._written)
            self._idle = False
            self._changed.wait_for(lambda: self._closing, timeout=self._delay)
            return not self._closing and self._failure is None

    def _flush(self) -> None:
        goal = self._written
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failure = error
        else:
            with self._changed:
                self._synced = max(self._synced, goal)


class JournalWriter:
    """Appends whole records to a journal.  One for each journal: the holder of the session's lock."""

    def __init__(self, path: str, descriptor: int, end: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._end = end
        self._torn = False
        self._flusher = Flusher(descriptor, path, synced=end)

    @classmethod
    def open(cls, path: str, end: int) -> JournalWriter:
        """Append to the journal at ``path`` after its ``end`` bytes of whole lines; what follows them, a torn tail, is cut off.

        Raises StorageError where it cannot be opened or cut.
        """
        root, name = os.path.split(path)
        try:
            descriptor = open_inside(root, name, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            if os.fstat(descriptor).st_size > end:
                os.ftruncate(descriptor, end)
            os.fsync(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise unwritable(path, error) from error
        return cls(path, descriptor, end)

    @property
    def end(self) -> int:
        """The journal's length in bytes."""
        return self._end

    @property
    def synced_offset(self) -> int:
        """The bytes before this are on disk: compare with what `append` returned."""
        return self._flusher.synced_offset

    def append(self, *lines: bytes) -> int:
        """Write ``lines`` (whole, each with its newline) at once and return the journal's new end; the sync follows by itself.

        All or nothing: where the disk is full, nothing of it stays, StorageError is raised, and a later append may succeed.
        """
        self._flusher.check()
        data = b"".join(lines)
        if not data:
            return self._end
        if self._torn:
            self._cut()
        self._torn = True
        try:
            self._write(data)
        except OSError as error:
            self._cut()
            raise unwritable(self._path, error) from error
        self._torn = False
        self._end += len(data)
        self._flusher.wrote(self._end)
        return self._end

    def sync(self) -> None:
        """Wait until everything appended is on disk.  Raises StorageError where that fails."""
        self._flusher.sync()

    def close(self) -> None:
        """Sync, and close; a second time does nothing.  Raises StorageError where the sync fails."""
        if self._descriptor < 0:
            return
        try:
            self._flusher.close()
            self._flusher.sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: bytes) -> None:
        done = os.write(self._descriptor, data)
        while done < len(data):
            done += os.write(self._descriptor, data[done:])

    def _cut(self) -> None:
        """Take back what a failed write left, so that the next record does not follow half a line."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError as error:
            raise unwritable(self._path, error) from error
        self._torn = False


def unwritable(path: str, error: OSError) -> StorageError:
    """The one line for a session file that cannot be written."""
    return StorageError(f"{path} cannot be written: {error.strerror or error}; nothing new is started; make room, then --resume")
