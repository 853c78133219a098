"""Where everything of a session is, how sessions are numbered and found, and how their files are opened.

``<sessions>/<number>/`` holds ``conf.yaml jobs journal.jsonl log workers/ lock``; directories 0700, files 0600, whatever the umask.
A directory is a session of ours once it has ``journal.jsonl``, which `Session.create` puts there last, by rename.  One with a file
``conf`` and no journal is a session of the original cloudtask: never taken for one of ours, its number never used again.
Nothing inside a session is opened through a symbolic link: sessions are copied, and kept in git.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from cloudtask.errors import SessionError, UnknownSessionError
from cloudtask.session import ranges

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
JOURNAL = "journal.jsonl"
WORKERS = "workers"


@dataclass(frozen=True)
class Paths:
    """The paths of one session; ``root`` is its directory."""

    root: str

    @property
    def conf(self) -> str:
        """The settings of the last run."""
        return os.path.join(self.root, "conf.yaml")

    @property
    def jobs(self) -> str:
        """The input lines as given."""
        return os.path.join(self.root, "jobs")

    @property
    def journal(self) -> str:
        """The truth."""
        return os.path.join(self.root, JOURNAL)

    @property
    def log(self) -> str:
        """The status lines, for people."""
        return os.path.join(self.root, "log")

    @property
    def workers(self) -> str:
        """The directory of the worker logs."""
        return os.path.join(self.root, WORKERS)

    @property
    def lock(self) -> str:
        """Held with flock by whoever runs the session."""
        return os.path.join(self.root, "lock")


def worker_log_name(worker: int, slot: int | None = None) -> str:
    """A worker log's name in the session, as in `model.Span.file`: ``slot`` is None where the worker has one slot only."""
    return f"{WORKERS}/{worker}.log" if slot is None else f"{WORKERS}/{worker}.{slot}.log"


def index_name(log: str) -> str:
    """The name of the index file beside a worker log: ``workers/3.log`` has ``workers/3.index``."""
    return log.removesuffix(".log") + ".index"


def open_inside(root: str, name: str, flags: int) -> int:
    """A descriptor (not inheritable) of the file ``name`` in the session ``root``; made 0600 where ``flags`` has O_CREAT.

    No part of ``name`` may be a symbolic link: SessionError.  Raises OSError for the rest.
    """
    *folders, last = name.split("/")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(last, flags | os.O_NOFOLLOW | os.O_NOCTTY, FILE_MODE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            link = os.path.join(root, name)
            raise SessionError(f"{link}: a symbolic link inside a session is not followed; put the file itself there") from None
        error.filename = os.path.join(root, name)
        raise
    finally:
        os.close(folder)
    if flags & os.O_CREAT:
        os.fchmod(descriptor, FILE_MODE)
    return descriptor


def read_inside(root: str, name: str) -> bytes:
    """The whole file ``name`` of the session ``root``, opened as `open_inside` does."""
    with os.fdopen(open_inside(root, name, os.O_RDONLY), "rb") as file:
        return file.read()


def write_inside(root: str, name: str, data: bytes) -> None:
    """Put ``data`` in the place of ``name``, whole or not at all: a new file beside it, fsync, rename, fsync of the directory."""
    fresh = name + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, fresh))
    with os.fdopen(open_inside(root, fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(os.path.join(root, fresh), os.path.join(root, name))
    sync_directory(root)


def sync_directory(path: str) -> None:
    """Make the names in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: str) -> None:
    """A new directory, 0700 whatever the umask.  Raises FileExistsError."""
    os.mkdir(path, DIRECTORY_MODE)
    os.chmod(path, DIRECTORY_MODE)


def make_sessions_directory(path: str) -> None:
    """Make ``path`` and what is missing above it; one that exists keeps its mode."""
    if os.path.isdir(path):
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        make_directory(path)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def numbers(sessions: str) -> list[int]:
    """Every number that is taken, rising: all names made of digits only, whatever is behind them.  None when there is no directory."""
    try:
        names = os.listdir(sessions)
    except FileNotFoundError:
        return []
    return sorted({int(name) for name in names if name.isascii() and name.isdigit()})


def claim(sessions: str) -> int:
    """Take the next number: its directory is made, by this process alone."""
    number = max(numbers(sessions), default=0) + 1
    while True:
        try:
            make_directory(os.path.join(sessions, str(number)))
        except FileExistsError:
            number += 1
        else:
            return number


def is_session(sessions: str, number: int) -> bool:
    """True when ``number`` is a session of ours."""
    return os.path.lexists(os.path.join(sessions, str(number), JOURNAL))


def is_original(sessions: str, number: int) -> bool:
    """True when ``number`` is a session of the original cloudtask."""
    return not is_session(sessions, number) and os.path.isfile(os.path.join(sessions, str(number), "conf"))


def originals(sessions: str) -> list[int]:
    """The numbers of the original cloudtask's sessions, rising: passed over, and worth one line on ``--resume``."""
    return [number for number in numbers(sessions) if is_original(sessions, number)]


def find(sessions: str, which: str | int) -> int:
    """The number of the session that ``which`` names: a number, or ``last`` for the highest of ours.

    Raises UnknownSessionError, one line that says what there is, or SessionError where the directory cannot be read.
    """
    try:
        ours = [number for number in numbers(sessions) if is_session(sessions, number)]
    except OSError as error:
        raise SessionError(f"the sessions in {sessions} cannot be read: {error.strerror}; name their directory with --sessions") from error
    if which == "last":
        if ours:
            return ours[-1]
        raise UnknownSessionError(f"no last session: {_what_there_is(sessions, ours)}")
    text = str(which)
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if number in ours:
        return number
    raise UnknownSessionError(_why_not(sessions, text, number, ours))


def _why_not(sessions: str, text: str, number: int, ours: list[int]) -> str:
    if number < 0:
        return f"no session {text!r}: give a number or 'last'; {_what_there_is(sessions, ours)}"
    if is_original(sessions, number):
        return f"session {number} in {sessions} was made by the original cloudtask, in another format: give its jobs to a new session"
    if os.path.isdir(os.path.join(sessions, str(number))):
        return f"session {number} in {sessions} was never completely made, and none of its jobs ran: give them to a new session"
    return f"no session {number}: {_what_there_is(sessions, ours)}"


def _what_there_is(sessions: str, ours: list[int]) -> str:
    old = originals(sessions)
    there_is = f"{sessions} has {ranges.describe(ours)}" if ours else f"{sessions} has no sessions"
    return there_is + (f" (passed over, made by the original cloudtask: {ranges.describe(old)})" if old else "")
