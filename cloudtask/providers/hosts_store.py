"""Where it is written which session uses which host: one small file for each machine in ``~/.local/state/cloudtask/hosts/``.

All sessions of one user on one machine share it, and it is the truth of the ``hosts`` provider.  ``lock`` is held with flock for as long
as records are read and changed, which is milliseconds; ``KEY.busy`` for as long as somebody acts on that machine, which may be minutes.
Files are 0600 in a directory 0700, replaced by rename and fsynced before the act that they announce.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from cloudtask.errors import ProviderBusyError
from cloudtask.providers.hosts_claims import Record, from_plain, to_plain

PATIENCE = 20.0
"""Seconds that the lock is waited for: whoever holds it for longer is stopped."""

_FILE = re.compile(r"([0-9a-f]{24})\.json")


def state_directory(environ: Mapping[str, str]) -> str:
    """The directory, with XDG_STATE_HOME honoured where it is absolute (XDG Base Directory Specification 0.8)."""
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "cloudtask", "hosts")


class Store:
    """The records in ``folder``, by the machine's key.  Raises ProviderBusyError where they cannot be read or written."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @contextmanager
    def locked(self, keys: Iterable[str] | None = None) -> Iterator[dict[str, Record]]:
        """All records, or only those of ``keys``; what the block leaves in the dictionary is what there is afterwards."""
        with self._trouble(), self._lock():
            records = self._read(keys)
            before = dict(records)
            yield records
            for key in before.keys() - records.keys():
                self._remove(key)
            for key, record in records.items():
                if before.get(key) != record:
                    self._write(record)

    def records(self, keys: Iterable[str] | None = None) -> dict[str, Record]:
        """All records, or those of ``keys``, as they are now."""
        with self.locked(keys) as records:
            return dict(records)

    def change(self, key: str, move: Callable[[Record], Record]) -> None:
        """One record made another; nothing happens where there is none."""
        with self.locked([key]) as records:
            if key in records:
                records[key] = move(records[key])

    @contextmanager
    def busy(self, key: str) -> Iterator[bool]:
        """Whether nobody else acts on this machine; nobody else will until the block ends."""
        path = os.path.join(self._folder, f"{key}.busy")
        with self._trouble():
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            yield _taken(descriptor) and _is_at(descriptor, path)
        finally:
            os.close(descriptor)

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ProviderBusyError(
                f"hosts: {error.filename or self._folder}: {error.strerror}; XDG_STATE_HOME names another place"
            ) from None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        path = os.path.join(self._folder, "lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            deadline, pause = time.monotonic() + PATIENCE, 0.001
            while not _taken(descriptor):
                if time.monotonic() > deadline:
                    raise ProviderBusyError(f"hosts: {path} is held by another process for {PATIENCE:.0f} s: look who is stopped")
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            yield
        finally:
            os.close(descriptor)

    def _read(self, keys: Iterable[str] | None) -> dict[str, Record]:
        there = {name for name in os.listdir(self._folder) if _FILE.fullmatch(name)}
        names = there if keys is None else there & {f"{key}.json" for key in keys}
        return {record.key: record for record in map(self._record, sorted(names))}

    def _record(self, name: str) -> Record:
        path = os.path.join(self._folder, name)
        with open(path, "rb") as file:
            data = file.read()
        try:
            record = from_plain(json.loads(data))
            if f"{record.key}.json" != name:
                raise ValueError("it is another machine's")
        except (ValueError, RecursionError) as error:
            raise ProviderBusyError(
                f"hosts: {path} cannot be understood: {error}; look whether the host is to be stopped, then remove the file"
            ) from None
        return record

    def _write(self, record: Record) -> None:
        path = os.path.join(self._folder, f"{record.key}.json")
        data = json.dumps(to_plain(record), indent=1).encode() + b"\n"
        new = f"{path}.new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
        self._sync()

    def _remove(self, key: str) -> None:
        for suffix in ("json", "busy"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, f"{key}.{suffix}"))
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise OSError(error.errno, "this file system has no working locks (flock)") from None
        raise
    return True


def _is_at(descriptor: int, path: str) -> bool:
    """The file that is locked is still the one of that name: it goes away with its record."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    return False
