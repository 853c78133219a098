"""The file of launched machines, one a line (see `worker_file`): written line by line as they get ready, rewritten as they are destroyed.

Whoever writes it holds it with flock, so that nobody takes lines away from under a launch that still adds some.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Container
from dataclasses import replace
from typing import Self

from cloudtask.errors import UsageError
from cloudtask.instances.machine import Machine
from cloudtask.model import Address
from cloudtask.worker_file import WorkerLine, instance_alias, parse_lines

MODE = 0o666


def address_in_file(machine: Machine, address: Address, user: str | None) -> Address:
    """A machine's address as its line names it: with the login to be used, and the name of its host key that follows from its id."""
    return replace(address, user=address.user or user, alias=None if address.local else instance_alias(machine.id))


def worker_line(machine: Machine, address: Address, session: str) -> str:
    """The line of a machine: where it is, what it must show, and all that is needed to destroy it.  Raises ValueError."""
    order = machine.order
    region = (machine.instance.region if machine.instance else "") or order.region
    facts = {"provider": order.provider, "region": region, "id": machine.id, "session": session}
    return WorkerLine(address=address, facts={name: value for name, value in facts.items() if value}).format()


class MachineFile:
    """An open file of machines, held until `close`.  ``path`` is the real one, behind symbolic links."""

    def __init__(self, path: str, descriptor: int, *, fresh: bool = False) -> None:
        self.path = path
        self._descriptor = descriptor
        self._fresh = fresh

    @classmethod
    def create(cls, path: str) -> Self:
        """A new one.  Raises UsageError where there is something already, or it cannot be made."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, MODE)
        except FileExistsError:
            raise UsageError(f"{path} exists already; name a new file, or destroy its machines with cloudtask-destroy-workers") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be made: {error.strerror}") from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(path, descriptor, fresh=True)

    @classmethod
    def open(cls, path: str) -> Self:
        """One that exists.  Raises UsageError where it cannot be opened, or somebody else holds it."""
        path = os.path.realpath(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{path} is being written by a launch, or destroyed from, at this moment: wait for that to end") from None
            undo.pop_all()
        return cls(path, descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, line: str) -> None:
        """One more line, on disk when this returns; half a line never stays.  Raises OSError."""
        before = os.fstat(self._descriptor).st_size
        data = f"{line}\n".encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise

    def read(self) -> str:
        """All of it.  Raises UsageError."""
        try:
            with open(self._descriptor, encoding="utf-8", closefd=False) as file:
                return file.read()
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise UsageError(f"{self.path} is not text in UTF-8") from None

    def replace(self, text: str) -> None:
        """Other content in its place, whole or not at all; no file where there is none.  Raises UsageError."""
        fresh = f"{self.path}.new"
        try:
            if not text:
                os.unlink(self.path)
                return
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, os.fstat(self._descriptor).st_mode & 0o777)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.rename(fresh, self.path)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}; it still lists machines that are gone") from error

    def close(self) -> None:
        """Let go of it; a new one in which nothing came to stand is removed."""
        if self._descriptor < 0:
            return
        if self._fresh and os.fstat(self._descriptor).st_size == 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self._descriptor)
        self._descriptor = -1


def what_is_left(text: str, name: str, gone: Container[str]) -> str:
    """The text without the lines of machines that are ``gone`` (by line); nothing where only comments would be left."""
    kept = [line for line in text.splitlines() if line not in gone]
    return "".join(f"{line}\n" for line in kept) if parse_lines("\n".join(kept), name) else ""
