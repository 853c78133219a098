"""The session that this process runs: made or opened, locked, written.  The one door for the main process."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from cloudtask.errors import SessionBusyError, SessionError
from cloudtask.model import Result
from cloudtask.session import conf, layout, records, replay
from cloudtask.session.journal import JournalWriter, unwritable
from cloudtask.session.layout import Paths
from cloudtask.session.lock import WATCHDOG, SessionLock, holder
from cloudtask.session.state import SessionState

_WAIT = 0.2

SEPARATORS = {"words": b"\n", "line": b"\n", "nul": b"\0"}
"""What ends each job in the file ``jobs``, by --input."""


@dataclass(frozen=True, kw_only=True)
class NewSession:
    """What a session begins with: job lines as given, the --input that they were read with, settings and where they came from."""

    jobs: Sequence[bytes]
    mode: str = "words"
    values: Mapping[str, object] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


class Session:
    """A session that this process holds the lock of.  ``state`` is what the journal said when it was opened: a snapshot.

    ``number`` (its directory's), ``uid`` and ``paths`` name it, ``cut`` is the length of the torn tail that opening cut off, in bytes.
    """

    def __init__(self, paths: Paths, lock: SessionLock, state: SessionState, cut: int = 0) -> None:
        self.paths = paths
        self.state = state
        self.number = int(os.path.basename(paths.root))
        self.uid = state.header.uid
        self.cut = cut
        self._lock = lock
        self._writer = JournalWriter.open(paths.journal, state.end)
        self._log = -1

    @classmethod
    def create(cls, sessions: str, new: NewSession) -> Session:
        """Make the next session in ``sessions`` (made too, where missing), durable, and hold its lock.

        Nothing of it stays where that fails: SessionError.
        """
        data = _join(new)
        settings = conf.dump(new.values, new.sources)
        with contextlib.ExitStack() as undo, _readable(f"no session can be made in {sessions}", "choose another directory with --sessions"):
            layout.make_sessions_directory(sessions)
            number = layout.claim(sessions)
            paths = Paths(os.path.join(sessions, str(number)))
            undo.callback(shutil.rmtree, paths.root, ignore_errors=True)
            lock = SessionLock.acquire(paths.root)
            undo.callback(lock.release)
            layout.make_directory(paths.workers)
            layout.write_inside(paths.root, "jobs", data)
            layout.write_inside(paths.root, "conf.yaml", settings)
            layout.write_inside(paths.root, layout.JOURNAL, _header(number, new))
            layout.sync_directory(sessions)
            session = cls(paths, lock, replay.replay(paths.journal, strict=True))
            undo.pop_all()
        return session

    @classmethod
    def open(cls, sessions: str, which: str | int, *, note: str = "", on_wait: Callable[[str], None] | None = None) -> Session:
        """Lock and replay the session that ``which`` names (a number, or ``last``), and cut off a torn tail.

        ``note`` is written into the lock.  A watchdog that is cleaning up is waited for, where ``on_wait`` is there to be told so.

        Raises UnknownSessionError, SessionBusyError, JournalError, SessionError, StorageError.
        """
        number = layout.find(sessions, which)
        paths = Paths(os.path.join(sessions, str(number)))
        with contextlib.ExitStack() as undo, _readable(f"session {number} cannot be opened", "see to that file"):
            lock = _acquire(paths.root, note, on_wait)
            undo.callback(lock.release)
            state = replay.replay(paths.journal, strict=True)
            cut = os.stat(paths.journal).st_size - state.end
            if not os.path.lexists(paths.workers):
                layout.make_directory(paths.workers)
            session = cls(paths, lock, state, cut)
            undo.pop_all()
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def append(self, *lines: bytes) -> int:
        """Write lines made by `records` at once; the journal's new end, to compare with `synced_offset`.  Raises StorageError."""
        return self._writer.append(*lines)

    def sync(self) -> None:
        """Wait until everything appended is on disk.  Raises StorageError."""
        self._writer.sync()

    @property
    def synced_offset(self) -> int:
        """The journal is on disk up to here."""
        return self._writer.synced_offset

    def beat(self) -> None:
        """A sign of life for the watchdog: the lock's file gets a new time."""
        self._lock.touch()

    def jobs(self) -> list[bytes]:
        """The job lines exactly as given; job number N is item N - 1.  Raises SessionError where the file is not the session's."""
        separator = SEPARATORS.get(self.state.header.mode, b"\n")
        with _readable(f"the jobs of session {self.number} cannot be read", "restore the file from a copy"):
            lines = layout.read_inside(self.paths.root, "jobs").split(separator)
        if lines.pop() or len(lines) != self.state.header.jobs:
            count = self.state.header.jobs
            raise SessionError(f"{self.paths.jobs} does not hold the {count} jobs of its journal; restore the file from a copy")
        return lines

    def unrelayed(self) -> Iterator[Result]:
        """The results that the state at opening had, and whose output was not shown yet, in job order."""
        return replay.results(self.paths.journal, self.state, self.state.unrelayed())

    def conf(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The settings of the last run, and their sources.  Raises SessionError."""
        return conf.load(self.paths.conf)

    def save_conf(self, values: Mapping[str, object], sources: Mapping[str, str]) -> None:
        """The settings of this run take the place of those before.  Raises StorageError."""
        conf.save(self.paths.conf, values, sources)

    def log(self, text: str) -> None:
        """Append a line to ``log``, at once.  Raises StorageError."""
        data = _encode(text) + b"\n"
        try:
            if self._log < 0:
                self._log = layout.open_inside(self.paths.root, "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            while data:
                data = data[os.write(self._log, data) :]
        except OSError as error:
            raise unwritable(self.paths.log, error) from error

    def close(self) -> None:
        """Sync the journal and let go of the lock; a second time does nothing.  Raises StorageError where the sync fails."""
        try:
            self._writer.close()
        finally:
            self._lock.release()
            if self._log >= 0:
                os.close(self._log)
                self._log = -1


def _acquire(root: str, note: str, on_wait: Callable[[str], None] | None) -> SessionLock:
    told = False
    while True:
        try:
            return SessionLock.acquire(root, note)
        except SessionBusyError:
            if on_wait is None or holder(root).note != WATCHDOG:
                raise
        if not told:
            on_wait(f"# the watchdog is cleaning up session {os.path.basename(root)} ({holder(root)}): waiting for it to end")
            told = True
        time.sleep(_WAIT)


def _encode(text: str) -> bytes:
    """Raw bytes come back as they were; what no byte stands behind (a worker may send any text) is replaced."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def _join(new: NewSession) -> bytes:
    separator = SEPARATORS[new.mode]
    data = b"".join(line + separator for line in new.jobs)
    if data.count(separator) != len(new.jobs):
        raise ValueError("a job line holds the byte that separates jobs")
    return data


def _header(number: int, new: NewSession) -> bytes:
    uid = f"{number}-{secrets.token_hex(6)}"
    return records.header(uid, number=number, jobs=len(new.jobs), mode=new.mode, created=time.time(), version=new.version)


@contextlib.contextmanager
def _readable(doing: str, way_out: str) -> Iterator[None]:
    """Turn an OSError into one line."""
    try:
        yield
    except OSError as error:
        raise SessionError(f"{doing}: {error.filename or ''}: {error.strerror or error}; {way_out}") from error
